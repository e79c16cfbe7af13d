"""What one MonArc training step costs beside one step of its own language model (K = 1, both with the chunked LM loss).

The FLOP limit is 1 + F_trunk / (F_trunk + F_head), attention counted in F_trunk: the candidate stream repeats the trunk and
needs no LM head. Sampling, the energy head and the merge of the self term are what comes on top.

    python benchmarks/training_step_cost.py [--repeats 20]
"""

import argparse

import torch
from record import alternate, record

from hf_elm.modeling.monarc.configuration_monarc import MonArcConfig
from hf_elm.modeling.monarc.lm_head_loss import lm_head_pass
from hf_elm.modeling.monarc.modeling_monarc import MonArcForCausalLM


SHAPES = {
    "d256_L3_V4096_T1024": (
        dict(hidden_size=256, intermediate_size=688, num_hidden_layers=3, num_attention_heads=4, vocab_size=4096),
        1,
        1024,
    ),
    "d256_L3_V4096_T256": (
        dict(hidden_size=256, intermediate_size=688, num_hidden_layers=3, num_attention_heads=4, vocab_size=4096),
        4,
        256,
    ),
    "d768_L4_V50258_T1024": (
        dict(hidden_size=768, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=12),
        1,
        1024,
    ),
}


def flop_limit(config, seq):
    """1 + F_trunk / (F_trunk + F_head): multiplications of one forward pass per token, causal attention counted as half of T."""
    d, f, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    trunk = layers * (4 * d * d + 3 * d * f + 2 * d * seq / 2)
    head = d * config.vocab_size
    return 1 + trunk / (trunk + head)


def lm_step(model, input_ids):
    """Forward and backward of the language model alone, with the same chunked head."""
    hidden = model.lm.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
    targets = input_ids[:, 1:].flatten()
    weights = torch.full(targets.shape, 1 / targets.numel())
    lm_head_pass(model.lm.lm_head, hidden[:, :-1].flatten(0, 1), targets, weights).loss.backward()
    model.zero_grad()


def elm_step(model, input_ids, backend):
    model.config.two_stream_backend = backend
    model(input_ids=input_ids, labels=input_ids).loss.backward()
    model.zero_grad()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in args.shapes:
        overrides, batch, seq = SHAPES[name]
        model = MonArcForCausalLM(MonArcConfig.preset("tiny", **overrides)).train()
        input_ids = torch.randint(0, model.config.text_config.vocab_size, (batch, seq))
        sides = {"lm": lambda m=model, x=input_ids: lm_step(m, x)}
        sides |= {b: lambda m=model, x=input_ids, b=b: elm_step(m, x, b) for b in ("merged", "sdpa")}
        limit = flop_limit(model.config.text_config, seq)
        for impl, timing in alternate(sides, args.repeats).items():
            record(
                "training_step_cost",
                impl=impl,
                shape={"name": name, "batch": batch, "seq": seq},
                dtype="float32",
                metric="cpu_time",
                unit="ms",
                flop_limit=round(limit, 3),
                over_limit=round(timing["ratio_p50"] / limit, 3),
                **timing,
            )


if __name__ == "__main__":
    main()
