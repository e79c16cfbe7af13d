"""Accuracy of n-best lists of the interpreter's library (`library_lines`) by LM, energy, ELM and with the first pass.

python benchmarks/rerank.py runs/quickstart/elm [--limit 150] [--weight 0.5]

One record per order of a MonArc model, standard errors by list, differences from the first pass and of the ELM from its LM paired
by list. The weight of the combination is given, not chosen on the lists.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from record import record

from hf_elm.noisy_lines import noisy_lines
from hf_elm.rerank_run import rerank_file
from hf_elm.reranking import RankingRule
from hf_elm.reranking_measures import ACCURACY, measure


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--limit", type=int, default=150)
    parser.add_argument("--weight", type=float, default=0.5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lists, start = noisy_lines(0)[: options.limit], time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "lists.jsonl"
        rerank_file(lists, output, options.checkpoint, weight=options.weight)
        rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    seconds = time.process_time() - start
    rules = {name: RankingRule(name) for name in ("lm", "energy", "elm")}
    rules["combined"] = RankingRule("elm", options.weight)
    found = measure(rows, rules)
    for name, metrics in found.orders.items():
        difference = found.differences.get(name, {}).get(ACCURACY)
        record(
            "rerank", order=name, metric="accuracy", value=round(metrics[ACCURACY].value, 4),
            standard_error=round(metrics[ACCURACY].standard_error, 4), minus_first_pass=difference and round(difference.value, 4),
            minus_first_pass_standard_error=difference and round(difference.standard_error, 4), n=found.num_lists,
            weight=options.weight if name == "combined" else None, candidates=len(rows[0]["candidates"]), cpu_seconds=round(seconds, 1),
        )  # fmt: skip


if __name__ == "__main__":
    main()
