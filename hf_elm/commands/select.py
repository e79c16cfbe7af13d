"""usage: hf-elm select SCORES output=FILE count=N|fraction=F|max_tokens=N|max_bytes=N [key=value ...] [--key value ...]

A corpus drawn from a table of scores, such as hf-elm score writes: without replacement by softmax(score / temperature), where
temperature=0 takes the best and temperature=.inf draws uniformly; strata=COLUMN gives every value of a column its share of the
whole. The rows come in the order of the draw, with their texts, scores and probabilities, ready for hf-elm train data.corpus=FILE.

  hf-elm select scores.parquet output=chosen.jsonl fraction=0.2
  hf-elm select scores.parquet output=chosen.jsonl max_tokens=1000000 column=lm_bits_per_byte prefer=high temperature=2
  hf-elm select scores.parquet output=baseline.jsonl count=500 strata=domain temperature=.inf
"""

import sys
from typing import Any

from ..recipes import literal_defaults, merge, split_arguments
from ..score_sections import select_schema


schema = select_schema


def run(arguments: list[str]) -> None:
    """Check, read, draw, write, print.

    Raises:
        ValueError, FileNotFoundError, FileExistsError, ImportError: see the messages.
    """
    sources, given = split_arguments(arguments, schema())
    if len(sources) != 1:
        raise ValueError(f"select takes one table of scores, got {len(sources)}; see `hf-elm select --help`.")
    if not given.get("output"):
        raise ValueError("select needs output=...; see `hf-elm select --help`.")
    settings = merge(literal_defaults(schema().keys.values()), given)
    if not 0 <= settings["seed"] < 2**32:
        raise ValueError(f"seed must be in [0, 2**32), got {settings['seed']}.")
    from ..selection_run import select_rows  # imports numpy

    output = settings.pop("output")
    sys.stdout.write(_summary(select_rows(sources[0], output, **settings), output))


def _summary(record: dict[str, Any], output: str) -> str:
    settings = record["settings"]
    amounts = [f"{record['num_chosen']:,} of {record['num_eligible']:,} documents"]
    for unit in ("tokens", "bytes"):
        if f"num_chosen_{unit}" in record:
            amounts.append(f"{record[f'num_chosen_{unit}']:,} of {record[f'num_eligible_{unit}']:,} {unit}")
    how = f"{settings['prefer']} {settings['column']} preferred, temperature {settings['temperature']}, seed {settings['seed']}"
    if settings["strata"]:
        how += f", {len(record['strata'])} strata of {settings['strata']}"
    lines = [
        ", ".join(amounts),
        how,
        f"mean {settings['column']} {record['mean_of_chosen']:.4f}, of all {record['mean_of_eligible']:.4f}",
        f"in {output}",
    ]
    left_out = record["num_documents"] - record["num_eligible"]
    if left_out:
        lines.insert(1, f"{left_out:,} without a score, which cannot be taken")
    return "\n".join(lines) + "\n"
