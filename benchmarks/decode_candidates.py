"""Time per token of resampling K candidates by energy, beside the language model alone (K = 1).

d768, 4 layers, V 50257, batch 1, prefix 128, sampling from the whole vocabulary. Prefill excluded: the clock is read by a
streamer at every token. Random weights give an almost flat p_LM, so all K candidates differ and every one costs a row of the
trunk (the hard case); ``peaked`` sharpens the head until draws repeat.

    python benchmarks/decode_candidates.py [--repeats 15] [--threads 1 2]
"""

import argparse
import time

import torch
from record import alternate, record

from hf_elm.modeling.monarc.configuration_monarc import MonArcConfig
from hf_elm.modeling.monarc.modeling_monarc import MonArcForCausalLM


SHAPE = dict(hidden_size=768, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=12, vocab_size=50257)


class TokenClock:
    """A streamer that reads the wall clock at every emitted token."""

    def __init__(self):
        self.times = []

    def put(self, tokens):
        self.times.append(time.perf_counter())

    def end(self):
        pass

    def seconds_per_token(self):
        """Mean over the tokens after the first; `generate` puts the prompt before them."""
        return (self.times[-1] - self.times[1]) / (len(self.times) - 2)


def decode(model, prompt, count, tokens):
    clock = TokenClock()
    model.generate(
        prompt, num_candidates=count, do_sample=True, top_k=0, min_new_tokens=tokens, max_new_tokens=tokens, streamer=clock,
    )  # fmt: skip
    return clock.seconds_per_token()


def mean_width(model, prompt, count, tokens):
    """Distinct candidates per token: rows of the trunk."""
    if count == 1:
        return 1.0
    out = model.generate(
        prompt, num_candidates=count, do_sample=True, top_k=0, max_new_tokens=tokens, return_dict_in_generate=True
    )
    return round(out.candidate_counts.float().mean().item(), 2)


def build(law, adapter_rank):
    torch.manual_seed(0)
    model = MonArcForCausalLM(MonArcConfig.preset("tiny", **SHAPE, energy_adapter_rank=adapter_rank)).eval()
    model.generation_config.eos_token_id = None
    for name, weight in model.energy_head.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=0.02)
    if law == "peaked":
        model.lm.lm_head.weight.data.mul_(10.0)
    return model


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--candidates", type=int, nargs="*", default=[1, 4, 8, 16])
    parser.add_argument("--laws", nargs="*", default=["flat", "peaked"])
    parser.add_argument("--prefix", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--adapter-rank", type=int, default=0)
    args = parser.parse_args()
    for threads in args.threads:
        torch.set_num_threads(threads)
        for law in args.laws:
            model = build(law, args.adapter_rank)
            prompt = torch.randint(0, SHAPE["vocab_size"], (1, args.prefix))
            sides = {k: lambda k=k, m=model, x=prompt: decode(m, x, k, args.tokens) for k in args.candidates}
            for count, timing in alternate(sides, args.repeats).items():
                record(
                    "decode_candidates", num_candidates=count, law=law, adapter_rank=args.adapter_rank,
                    shape={"d": 768, "layers": 4, "vocab": 50257, "batch": 1, "prefix": args.prefix, "tokens": args.tokens},
                    dtype="float32", mean_width=mean_width(model, prompt, count, args.tokens), metric="wall_time_per_token", unit="ms", **timing,
                )  # fmt: skip


if __name__ == "__main__":
    main()
