"""How close resampling K candidates comes to the exact law of the ELM: total variation of the next token.

For held-out prefixes the exact law q = p exp(-E) / Z is computed over the whole vocabulary; the law of candidate decoding is
estimated from many candidate sets, each contributing its exact choice probabilities (Rao-Blackwell), so that only the sets
are random. K = 1 is the language model.

    python benchmarks/candidate_law.py runs/quickstart/elm [--prefixes 32]
"""

import argparse

import torch
from record import record

from hf_elm import MonArcForCausalLM
from hf_elm.trainers import build_tokenizer, load_corpus, pack_rows


def next_token_laws(model, prefix):
    """LM log-probabilities and energies of every next token after ``prefix`` ``(seq,)``, ``(vocab,)`` each."""
    vocab = model.config.text_config.vocab_size
    row = torch.cat([prefix, prefix[:1]])[None]
    candidates = row[:, None].repeat(1, vocab, 1)
    candidates[0, :, -1] = torch.arange(vocab)
    scores = model.score_candidates(row, candidates, max_rows=vocab)
    return scores.log_probs[0, :, -1].double(), scores.energies[0, :, -1].double()


def total_variation(p, q):
    return 0.5 * (p - q).abs().sum().item()


def sampled_law(log_probs, energies, num_candidates, sets):
    drawn = torch.multinomial(log_probs.exp().expand(sets, -1), num_candidates, replacement=True)
    weights = torch.softmax(-energies[drawn], -1)
    return torch.zeros_like(energies).index_add_(0, drawn.flatten(), weights.flatten()) / sets


def topk_law(log_probs, energies, num_candidates):
    kept = log_probs.topk(min(num_candidates, len(log_probs))).indices
    return torch.zeros_like(energies).index_add_(0, kept, torch.softmax((log_probs - energies)[kept], -1))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--prefixes", type=int, default=32)
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--sets", type=int, default=4000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = MonArcForCausalLM.from_pretrained(args.checkpoint).eval()
    rows = pack_rows(
        load_corpus("stdlib", held_out_fraction=0.1).held_out, build_tokenizer("byte"), args.length, seed=0
    )
    laws = []
    for row in rows.shuffle(seed=0).select(range(args.prefixes)):
        log_probs, energies = next_token_laws(model, torch.tensor(row["input_ids"]))
        laws.append((log_probs, energies, torch.softmax(log_probs - energies, -1)))
    shape = {"prefixes": args.prefixes, "length": args.length, "vocab": len(laws[0][0]), "sets": args.sets}
    base = {"shape": shape, "dtype": "float64", "metric": "total_variation", "unit": "1", "n": args.prefixes}
    record(
        "candidate_law",
        impl="lm",
        value=round(sum(total_variation(lp.exp(), q) for lp, _, q in laws) / len(laws), 4),
        **base,
    )
    for count in (1, 2, 4, 8, 16, 32, 64):
        sampled = [total_variation(sampled_law(lp, e, count, args.sets), q) for lp, e, q in laws]
        topk = [total_variation(topk_law(lp, e, count), q) for lp, e, q in laws]
        for impl, values in (("sample", sampled), ("topk", topk)):
            record("candidate_law", impl=impl, num_candidates=count, value=round(sum(values) / len(values), 4), **base)


if __name__ == "__main__":
    main()
