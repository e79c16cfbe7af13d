"""Which way of choosing among N samples finds the right answer most often, on sums with written steps.

Task: `73815:` continued by the digits in any order, each with the sum so far modulo 10, and the answer: `3=3 1=4 7=1 5=6 8=4;4`. As in
a word problem there are many ways to one answer (120 orders), and a wrong step spoils the end. Every tenth problem, by a hash, is
held out. A small language model (LM) is trained on it, then an energy with an adapter around the frozen LM (MonArc, ELM), and another
LM for the CPU time of both ("longer LM"). N samples are drawn from the LM, with `num_candidates` from the ELM, and from the longer LM;
every rule chooses among the same samples:

    greedy · one sample (mean over the N) · vote · likelihood, consistency (with and without pruning) by LM and by ELM · energy · oracle

Accuracy over held-out problems; standard errors by problem, differences from the vote over the same samples paired by problem.

    OMP_NUM_THREADS=1 python benchmarks/sample_choice.py [--seeds 0 1] [--problems 150]
"""

import argparse
import copy
import random
import time
from hashlib import blake2b

import torch
from record import record
from transformers import StableLmConfig, StableLmForCausalLM, get_linear_schedule_with_warmup

from hf_elm.continuation_samples import ContinuationSampler, score_samples
from hf_elm.continuation_scores import scorer_of
from hf_elm.document_totals import ratio_estimate
from hf_elm.modeling.monarc.modeling_monarc import MonArcForCausalLM
from hf_elm.sample_choice import Sample, answer_of, choose_sample
from hf_elm.text_scores import TextScorer
from hf_elm.trainers.tokenization import build_tokenizer


BENCH, PATTERN, STOP = "sample_choice", r";(\d)", "\n"
DIGITS, BATCH = 5, 64
PROMPTS_AT_ONCE = 16
SHAPE = {"hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
LM_RATE, ENERGY_RATE, ADAPTER_RANK = 4e-3, 4e-3, 8
RULES = {  # name -> arguments of choose_sample
    "vote": {"choose": "vote"},
    "likelihood by LM": {"choose": "likelihood", "by": "lm"},
    "likelihood by ELM": {"choose": "likelihood", "by": "elm"},
    "energy": {"choose": "energy"},
    "consistency by LM": {"choose": "consistency", "by": "lm", "prune": False},
    "consistency by ELM": {"choose": "consistency", "by": "elm", "prune": False},
    "consistency by LM, pruned": {"choose": "consistency", "by": "lm"},
    "consistency by ELM, pruned": {"choose": "consistency", "by": "elm"},
}


def solution(digits: str, rng: random.Random) -> str:
    """The steps in a random order, and the answer."""
    total, steps = 0, []
    for digit in rng.sample(digits, len(digits)):
        total = (total + int(digit)) % 10
        steps.append(f"{digit}={total}")
    return f"{' '.join(steps)};{total}{STOP}"


def held_out(digits: str) -> bool:
    return blake2b(digits.encode(), digest_size=2).digest()[0] % 10 == 0


def problems(count: int, rng: random.Random, test: bool) -> list[str]:
    found = []
    while len(found) < count:
        digits = "".join(rng.choice("0123456789") for _ in range(DIGITS))
        if held_out(digits) == test:
            found.append(digits)
    return found


def batch(tokenizer, rng: random.Random) -> dict:
    """Rows of one length; the problem itself is not learnt."""
    digits = problems(BATCH, rng, test=False)
    rows = torch.tensor(tokenizer([f"{each}:{solution(each, rng)}" for each in digits])["input_ids"])
    labels = rows.clone()
    labels[:, : DIGITS + 1] = -100
    return {"input_ids": rows, "labels": labels}


def train(model, tokenizer, steps: int, rate: float, seed: int, weight_decay: float) -> float:
    """Trains what requires gradients, in place; CPU seconds."""
    start, rng = time.process_time(), random.Random(f"train {seed}")
    torch.manual_seed(seed)
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=weight_decay, betas=(0.9, 0.95))
    schedule = get_linear_schedule_with_warmup(optimizer, 50, steps)
    model.train()
    for _ in range(steps):
        loss = model(**batch(tokenizer, rng)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    return time.process_time() - start


def new_lm(tokenizer, seed: int) -> StableLmForCausalLM:
    torch.manual_seed(seed)
    tokens = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    heads = {"num_key_value_heads": SHAPE["num_attention_heads"], "max_position_embeddings": 64, "use_qkv_bias": True}
    return StableLmForCausalLM(StableLmConfig(vocab_size=len(tokenizer), **SHAPE, **heads, **tokens))


def models(tokenizer, seed: int, steps: int, energy_steps: int):
    """The ELM with its frozen LM inside, an LM trained from scratch for the CPU time of both, and CPU seconds of each training."""
    lm = new_lm(tokenizer, seed)
    seconds = {"lm": train(lm, tokenizer, steps, LM_RATE, seed, 0.1)}
    elm = MonArcForCausalLM.from_causal_lm(copy.deepcopy(lm), freeze_lm=True, energy_adapter_rank=ADAPTER_RANK)
    seconds["energy"] = train(elm, tokenizer, energy_steps, ENERGY_RATE, seed + 1, 0.0)
    longer = new_lm(tokenizer, seed)
    more = round(steps * (1 + seconds["energy"] / seconds["lm"]))
    seconds["longer_lm"] = train(longer, tokenizer, more, LM_RATE, seed, 0.1)
    return elm, longer, seconds


def drawn(model, tokenizer, prompts: torch.Tensor, num_samples: int, **options) -> list[list[Sample]]:
    """Samples of each prompt, `PROMPTS_AT_ONCE` prompts side by side: all have the same length."""
    sampler = ContinuationSampler(model, tokenizer, [STOP])
    samples = []
    for part in prompts.split(PROMPTS_AT_ONCE):
        rows = part.repeat_interleave(num_samples, 0)
        mask = torch.ones_like(rows)
        output = model.generate(rows, attention_mask=mask, max_new_tokens=6 * DIGITS, **options)
        found = [sampler.sample_of(row) for row in output[:, rows.shape[1] :].tolist()]
        samples += [found[i : i + num_samples] for i in range(0, len(found), num_samples)]
    return samples


def outcomes(model, tokenizer, tests: list[str], num_samples: int, **options) -> dict[str, list[float]]:
    """Rule -> 1 or 0 for each problem; rules that need an energy are left out for an LM."""
    prompts = tokenizer([f"{digits}:" for digits in tests], return_tensors="pt")["input_ids"]
    greedy = drawn(model, tokenizer, prompts, 1, do_sample=False, **options)
    torch.manual_seed(0)
    every = drawn(model, tokenizer, prompts, num_samples, do_sample=True, **options)
    texts = TextScorer(scorer_of(model, num_samples), tokenizer)
    rules = {name: rule for name, rule in RULES.items() if "ELM" not in name and name != "energy"}
    rules = RULES if texts.scorer.columns[-1] == "elm" else rules
    found: dict[str, list[float]] = {}
    for digits, prompt, first, samples in zip(tests, prompts.tolist(), greedy, every, strict=True):
        right = str(sum(map(int, digits)) % 10)
        scored = score_samples(samples, prompt, texts)
        answers = [answer_of(sample.text, PATTERN) for sample in scored]
        row = {"greedy": answer_of(first[0].text, PATTERN) == right}
        row["one sample"] = sum(answer == right for answer in answers) / len(answers)
        for name, rule in rules.items():
            row[name] = choose_sample(scored, answer_pattern=PATTERN, **rule).answer == right
        row["oracle"] = right in answers
        for name, value in row.items():
            found.setdefault(name, []).append(float(value))
    return found


def report(results: dict[str, dict[str, list[list[float]]]], **shared) -> None:
    """One record for each source of samples and rule."""
    for source, rules in results.items():
        vote = torch.tensor(rules["vote"]).flatten()
        for name, values in rules.items():
            right = torch.tensor(values)
            units = torch.ones(right.numel())
            accuracy, gain = ratio_estimate(right.flatten(), units), ratio_estimate(right.flatten() - vote, units)
            record(
                BENCH,
                metric="accuracy",
                samples_from=source,
                rule=name,
                value=round(accuracy.value, 4),
                standard_error=round(accuracy.standard_error, 4),
                by_seed=[round(value, 4) for value in right.mean(1).tolist()],
                minus_vote=round(gain.value, 4),
                minus_vote_standard_error=round(gain.standard_error, 4),
                **shared,
            )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--problems", type=int, default=150)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--energy-steps", type=int, default=200)
    given = parser.parse_args()
    tokenizer = build_tokenizer("char", ["0123456789:=; \n"])
    tests = problems(given.problems, random.Random("test"), test=True)
    results: dict[str, dict[str, list[list[float]]]] = {"LM": {}, "ELM": {}, "longer LM": {}}
    seconds, start = [], time.process_time()
    for seed in given.seeds:
        elm, longer, spent = models(tokenizer, seed, given.steps, given.energy_steps)
        seconds.append(spent)
        sources = {
            "LM": (elm, {"num_candidates": 1}),
            "ELM": (elm, {"num_candidates": given.candidates}),
            "longer LM": (longer, {}),
        }
        for source, (model, options) in sources.items():
            for name, values in outcomes(model, tokenizer, tests, given.samples, **options).items():
                results[source].setdefault(name, []).append(values)
    spent = {name: round(sum(each[name] for each in seconds) / len(seconds), 1) for name in seconds[0]}
    shape = {**SHAPE, "digits": DIGITS, "samples": given.samples, "candidates": given.candidates}
    counts = {"n": given.problems, "steps": given.steps, "energy_steps": given.energy_steps, "seeds": given.seeds}
    report(results, shape=shape, train_cpu_seconds=spent, **counts)
    print(f"{time.process_time() - start:.0f} CPU-s in all")


if __name__ == "__main__":
    main()
