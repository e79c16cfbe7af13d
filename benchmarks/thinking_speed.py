"""What thinking costs: tokens per CPU-second of generation against the published way of generating, and of training.

Generation (d64, vocabulary 65, batch 1, a prompt of 256 tokens): `model.generate`, prefill included, beside `NaiveReference`, the
published generation written out from its description: 3 layers, the whole window of 256 computed again for each token, every
position refined by autograd although the last one alone is used, with its early stop. Training: one optimizer step (forward,
backward, AdamW) of a trunk with the default energy and two steps of thinking, beside the same trunk as a plain GPT and a GPT of
about the same number of parameters.

All sides take turns in one process; a record's ``ratio`` is that of speeds, per round, to the side named in ``over``. The
published implementation itself was measured at 166 (thinking) and 209 (without) tokens per CPU-second, on another loaded machine.

    python benchmarks/thinking_speed.py [--repeats 15] [--only generation|training]
"""

import argparse
import time

import torch
import torch.nn.functional as F
from record import quantiles, record
from torch import nn

from hf_elm.modeling.nano_ebm import NanoEBMConfig, NanoEBMForRefinement


RECORDED = {"thinking": 166, "system 1": 209}  # tokens per CPU-second of the published implementation at context 256
VOCAB = 65
TRAINING = {  # name -> hidden, layers, layers of the GPT of about the same size, batch, seq
    "d64_L2_T64": (64, 2, 3, 32, 64),
    "d128_L3_T128": (128, 3, 4, 16, 128),
    "d128_L6_T128": (128, 6, 7, 16, 128),
}


# ------------------------------------------------------------------------------------------- the published generation


class NaiveBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), as in a GPT."""

    def __init__(self, hidden, heads):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x):
        batch, seq, hidden = x.shape
        heads = (batch, seq, self.heads, hidden // self.heads)
        query, key, value = (part.view(heads).transpose(1, 2) for part in self.qkv(self.norm_1(x)).split(hidden, -1))
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, seq, hidden))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class NaiveReference(nn.Module):
    """E = head(trunk(x)); z <- z - alpha clamp(dJ/dz), J = mean <softmax(z), E>, over the whole window, for every token."""

    def __init__(self, hidden=64, layers=3, heads=4, window=256, alpha=0.02):
        super().__init__()
        self.window, self.alpha = window, alpha
        self.tokens, self.positions = nn.Embedding(VOCAB, hidden), nn.Embedding(window, hidden)
        self.blocks = nn.ModuleList([NaiveBlock(hidden, heads) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(hidden), nn.Linear(hidden, VOCAB, bias=False)
        nn.init.normal_(self.head.weight, std=0.1)

    def energies(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def refined(self, energies, steps, tolerance=1e-4):
        """z after ``steps``, or when J has changed by less than ``tolerance`` twice in a row."""
        energies, previous, calm = energies.detach(), None, 0
        z = -energies
        for _ in range(steps):
            z.requires_grad_()
            objective = (F.softmax(z, -1) * energies).sum(-1).mean()
            (gradient,) = torch.autograd.grad(objective, z)
            z = z.detach() - self.alpha * gradient.clamp(-5, 5)
            z = z - z.mean(-1, keepdim=True)
            calm = calm + 1 if previous is not None and abs(objective.item() - previous) < tolerance else 0
            previous = objective.item()
            if calm == 2:
                break
        return z

    def generate(self, ids, new_tokens, steps, do_sample):
        for _ in range(new_tokens):
            energies = self.energies(ids[:, -self.window :])
            logits = (self.refined(energies, steps) if steps else -energies)[:, -1]
            chosen = torch.multinomial(logits.softmax(-1), 1) if do_sample else logits.argmax(-1, keepdim=True)
            ids = torch.cat([ids, chosen], 1)
        return ids


# ------------------------------------------------------------------------------------------------------- measurements


def gpt_or_refined(hidden, layers, positions, refined, **fields):
    """A model with the default energy, or its trunk alone as a plain GPT."""
    torch.manual_seed(0)
    plain = {} if refined else {"energy_type": "linear", "use_thinking": False, "think_lr_learnable": False}
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "max_position_embeddings": positions}
    return NanoEBMForRefinement(NanoEBMConfig(vocab_size=VOCAB, num_attention_heads=4, **sizes, **plain, **fields))


def size_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


def speeds_in_turn(sides, repeats):
    """Tokens per CPU-second of each side, ``repeats`` rounds after one of warming up; a side returns how many tokens it did."""
    speeds = {name: [] for name in sides}
    for round_number in range(repeats + 1):
        for name, side in sides.items():
            start = time.process_time()
            count = side()
            if round_number:
                speeds[name].append(count / (time.process_time() - start))
    return speeds


def write(speeds, name, over, **fields):
    ratios = [speed / base for speed, base in zip(speeds[name], speeds[over], strict=True)]
    timing = {**quantiles(speeds[name], ""), **quantiles(ratios, "ratio_"), "n": len(ratios)}
    record(
        "thinking_speed",
        impl=name,
        over=over,
        dtype="float32",
        metric="speed",
        unit="tokens/cpu_s",
        **fields,
        **timing,
    )


def generation(repeats, prompt=256, new_tokens=256, naive_tokens=32):
    naive = NaiveReference().eval()
    models = {
        "2 layers + free energy": gpt_or_refined(64, 2, 512, True).eval(),
        "3 layers + free energy": gpt_or_refined(64, 3, 512, True).eval(),
        "3 layers, published energy": NanoEBMForRefinement(
            NanoEBMConfig.preset("published", vocab_size=VOCAB, max_position_embeddings=512)
        ).eval(),
    }
    ids = torch.randint(VOCAB, (1, prompt), generator=torch.Generator().manual_seed(0))
    for choice, do_sample in (("greedy", False), ("sampling", True)):
        unfiltered = {"top_k": 0} if do_sample else {}
        for thinking, steps in (("thinking", 4), ("system 1", 0)):

            def generate(model, steps=steps, do_sample=do_sample, unfiltered=unfiltered):
                model.generate(
                    ids,
                    think_steps=steps,
                    do_sample=do_sample,
                    **unfiltered,
                    max_new_tokens=new_tokens,
                    eos_token_id=None,
                )
                return new_tokens

            def generate_naively(steps=steps, do_sample=do_sample):
                naive.generate(ids, naive_tokens, steps, do_sample)
                return naive_tokens

            sides = {"naive reference": generate_naively}
            sides |= {name: lambda m=model, f=generate: f(m) for name, model in models.items()}
            speeds = speeds_in_turn(sides, repeats)
            for name in sides:
                write(
                    speeds, name, "naive reference", task="generation", mode=thinking, choice=choice, think_steps=steps,
                    parameters=size_of(models.get(name, naive)), recorded_reference=RECORDED[thinking],
                    shape={"d": 64, "vocab": VOCAB, "batch": 1, "prompt": prompt, "new_tokens": new_tokens},
                )  # fmt: skip


def training_step(model, ids):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step():
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return ids.numel()

    return step


def training(repeats):
    for shape, (hidden, layers, equal_layers, batch, seq) in TRAINING.items():
        ids = torch.randint(VOCAB, (batch, seq), generator=torch.Generator().manual_seed(0))
        models = {
            "plain GPT, same trunk": gpt_or_refined(hidden, layers, seq, False).train(),
            "trunk + free energy, 2 steps": gpt_or_refined(hidden, layers, seq, True, think_steps=2).train(),
            f"plain GPT, {equal_layers} layers": gpt_or_refined(hidden, equal_layers, seq, False).train(),
        }
        speeds = speeds_in_turn({name: training_step(model, ids) for name, model in models.items()}, repeats)
        for name, model in models.items():
            write(
                speeds, name, "plain GPT, same trunk", task="training", parameters=size_of(model),
                shape={"name": shape, "d": hidden, "layers": layers, "vocab": VOCAB, "batch": batch, "seq": seq},
            )  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", choices=["generation", "training"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.only != "training":
        generation(args.repeats)
    if args.only != "generation":
        training(args.repeats)


if __name__ == "__main__":
    main()
