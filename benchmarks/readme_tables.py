"""Writes the tables of the README and of docs/how_to from the newest records, between ``<!-- name -->`` and ``<!-- end -->``.

python benchmarks/readme_tables.py           # rewrite
python benchmarks/readme_tables.py --check   # exit 1 where a page says something else
"""

import json
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]


def every(bench: str, **wanted) -> list[dict]:
    """The records of ``bench`` whose fields are as ``wanted``, oldest first."""
    lines = (ROOT / "benchmarks" / "results" / f"{bench}.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if all(r.get(key) == value for key, value in wanted.items())]


def newest(bench: str, **wanted) -> dict:
    """The last of them."""
    return every(bench, **wanted)[-1]


def table(*rows) -> str:
    """A Markdown table; the first row is its head, all columns but the first are right-aligned."""
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|---|" + "---:|" * (len(rows[0]) - 1), *body])


def quickstart() -> str:
    r = newest("quickstart")
    cpu = r["cpu_seconds"]
    return table(
        ("", "nats/byte", "SE by document", "bits/byte", "CPU-s"),
        ("language model (LM)", f"{r['lm_nll']:.4f}", f"{r['lm_nll_se']:.4f}", f"{r['lm_bits_per_byte']:.4f}", f"{cpu['lm']:.0f}"),
        ("**ELM: the same LM, frozen, with its energy**", f"**{r['elm_nll']:.4f}**", f"{r['elm_nll_se']:.4f}", f"{r['elm_bits_per_byte']:.4f}", f"+{cpu['energy']:.0f}"),
        ("gain of the ELM over its LM (paired)", f"{r['gain']:+.4f}", f"{r['gain_se']:.4f}", "", ""),
        ("that LM trained on for the same CPU time", f"{r['equal_compute_lm_nll']:.4f}", f"{r['equal_compute_lm_nll_se']:.4f}", "", f"+{cpu['lm_continued']:.0f}"),
    )  # fmt: skip


def saturated() -> str:
    adapter = newest("adapt_saturated_lm", row="adapt", steps=5000)
    grown = newest("adapt_saturated_lm", row="grow")
    continued = max(every("adapt_saturated_lm", row="continue", steps=15361), key=lambda r: r["gain"])
    rows = [
        ("trained on (the best of its learning rates)", continued, continued["lm_nll"]),
        ("**frozen, with a rank-8 energy adapter (ELM)**", adapter, adapter["elm_nll"]),
        ("grown by one layer, the rest frozen", grown, grown["lm_nll"]),
    ]
    return table(
        (f"an LM at {adapter['lm_nll']:.4f}, then", "CPU-s", "nats/character", "gain", "SE by document"),
        *((name, f"{r['cpu_seconds']:.0f}", f"{nll:.4f}", f"{r['gain']:+.4f}", f"{r['gain_se']:.4f}") for name, r, nll in rows),
    )  # fmt: skip


def pretrained() -> str:
    energies = [
        ("a bilinear energy head, LM frozen (ELM)", "head"),
        ("a rank-8 energy adapter with it (ELM)", "adapter"),
    ]
    found = {r["row"]: r for r in every("adapt_smollm2")}
    rows = [
        (
            f"**{name}**",
            r,
            f"**{r['elm_nll_lower']:.4f} to {r['elm_nll_upper']:.4f}**",
            r["gain_lower"],
            r["gain_lower_se"],
        )
        for name, r in ((name, found[row]) for name, row in energies if row in found)
    ]
    for name, kind in (
        ("LoRA on the LM (the best of its rates)", "lora"),
        ("the whole LM (the best of its rates)", "full"),
    ):
        r = min((r for row, r in found.items() if row.startswith(f"{kind}-")), key=lambda r: r["trained_lm_nll"])
        rows.append((name, r, f"{r['trained_lm_nll']:.4f}", r["gain"], r["gain_se"]))
    return table(
        (f"the LM at {found['head']['lm_nll']:.4f}, then", "CPU-s", "nats/token", "gain, at least", "SE by document"),
        *((name, f"{r['cpu_seconds']:.0f}", nll, f"{gain:+.4f}", f"{se:.4f}") for name, r, nll, gain, se in rows),
    )


def cost() -> str:
    step = newest("training_step_cost", impl="merged")
    full, chunked = newest("lm_head_loss", impl="full_logits"), newest("lm_head_loss", impl="chunked")
    decode = newest("decode_candidates", num_candidates=8, threads=1, law="flat", adapter_rank=0)
    memory = f"{full['peak_memory_mib']:.0f} → {chunked['peak_memory_mib']:.0f} MiB"
    return table(
        ("what", "measured", "p20 to p80", "record"),
        (f"training step over an LM step ({step['shape']['name']}, K = 1; FLOP limit {step['flop_limit']:.2f})", f"{step['ratio_p50']:.2f}×", f"{step['ratio_p20']:.2f} to {step['ratio_p80']:.2f}", "`training_step_cost`"),
        (f"LM loss and negatives in chunks against full logits (1024 × 50257; peak memory {memory})", f"{1 / chunked['ratio_p50']:.2f}× faster", f"{1 / chunked['ratio_p80']:.2f} to {1 / chunked['ratio_p20']:.2f}", "`lm_head_loss`"),
        ("decoding with K = 8 candidates over K = 1, per token (d768, 4 layers, V 50257)", f"{decode['ratio_p50']:.2f}×", f"{decode['ratio_p20']:.2f} to {decode['ratio_p80']:.2f}", "`decode_candidates`"),
    )  # fmt: skip


def encoder() -> str:
    def layer(length):
        r = newest("m2_bert_layer", impl="ours, spectra remembered", shape={"batch": 1, "seq": length, "hidden": 768})
        return f"{r['speedup_p50']:.2f}× ({r['speedup_p20']:.2f} to {r['speedup_p80']:.2f})"

    def model(length):
        r = newest("m2_bert_model", impl="m2_bert_80m", metric="wall_time", shape={"batch": 1, "seq": length})
        return f"{r['speedup']:.2f}×"

    return table(
        (
            "tokens",
            "one layer over the published formula, one thread",
            "the 80M model over BERT-base with SDPA, two threads",
        ),
        *(
            (f"{length:,}", layer(length), model(length) if length <= 8192 else "")
            for length in (512, 2048, 8192, 32768)
        ),
    )


def thinking() -> str:
    sizes = {"tiny": "0.16 M parameters, 800 steps", "small": "0.8 M parameters, 1000 steps"}
    rows = [
        ("GPT of as many parameters, as many steps", "gpt", "nll_s1"),
        ("nanoEBM, system 1 (before thinking)", "nanoebm", "nll_s1"),
        ("**nanoEBM, system 2 (2 steps of thinking)**", "nanoebm", "nll_s2"),
        ("nanoEBM, 8 steps of thinking", "nanoebm", "nll_8_steps"),
        ("GPT given the nanoEBM's CPU time", "gpt_equal_compute", "nll_s1"),
    ]

    def cell(size, row, name):
        newest_by_seed = {r["seed"]: r[name] for r in every("refinement_gain", row=row, size=size)}
        values = sorted(newest_by_seed.values())
        return f"{sum(values) / len(values):.4f} ({values[0]:.3f} to {values[-1]:.3f}; {len(values)} seeds)"

    return table(
        ("nats/character", *sizes.values()),
        *((label, *(cell(size, row, name) for size in sizes)) for label, row, name in rows),
    )


def rewritten(text: str, tables: dict) -> str:
    """``text`` with every table in it made anew."""
    for name, make in tables.items():
        start = f"<!-- {name} -->\n"
        if start in text:
            before, rest = text.split(start)
            text = f"{before}{start}{make()}\n<!-- end -->{rest.split('<!-- end -->', 1)[1]}"
    return text


def main():
    import use_tables

    tables = {make.__name__: make for make in (quickstart, saturated, pretrained, thinking, cost, encoder)}
    tables |= {make.__name__: make for make in use_tables.TABLES}
    changed = False
    for path in (ROOT / "README.md", *sorted((ROOT / "docs" / "how_to").glob("*.md"))):
        old = path.read_text(encoding="utf-8")
        new = rewritten(old, tables)
        changed |= new != old
        if "--check" not in sys.argv and new != old:
            path.write_text(new, encoding="utf-8")
    if "--check" in sys.argv:
        sys.exit(changed)


if __name__ == "__main__":
    main()
