"""usage: hf-elm rerank LISTS.jsonl checkpoint=PATH_OR_ID output=FILE.jsonl [key=value ...] [--key value ...]

N-best lists in a new order: by the likelihood or the energy of a MonArc model, by a nanoEBM before or after thinking, by any other
causal LM, alone or together with the scores of the first pass. One list per line:

  {"id": 7, "context": "", "candidates": [{"text": "their house", "score": -3.1}, {"text": "there house", "score": -2.9}],
   "reference": "their house"}

Candidates may be plain texts; id, context and score may be missing. Where a reference (the right text) or a label (the place of the
right candidate, from 0) is given, accuracies and error rates of the first places are shown before and after. library_lines in the
place of a file is a set of lists made from the interpreter's library. An interrupted run is continued by the same command; the
output appears when it is complete.

  hf-elm rerank lists.jsonl checkpoint=runs/first output=reranked.jsonl weight=0.5
  hf-elm rerank library_lines checkpoint=runs/first output=reranked.jsonl limit=100 by=energy report=measures.json
"""

import sys
from pathlib import Path
from typing import Any

from ..causal_settings import keep_fitting
from ..recipes import literal_defaults, merge, split_arguments
from ..rerank_sections import rerank_schema
from ..run_folder import require_writable


schema = rerank_schema
_LIBRARY = "library_lines"


def run(arguments: list[str]) -> None:
    """Check, read, score, write, print.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: see the messages.
    """
    sources, given = split_arguments(arguments, schema())
    if len(sources) != 1:
        raise ValueError(f"rerank takes one file of lists, or {_LIBRARY}; got {len(sources)}.")
    for key in ("checkpoint", "output"):
        if not given.get(key):
            raise ValueError(f"rerank needs {key}=...; see `hf-elm rerank --help`.")
    settings = merge(literal_defaults(schema().keys.values()), given)
    _check(settings)
    keep_fitting("rerank", given, settings)
    from ..partial_rows import check_rows_output

    output, report = check_rows_output(settings.pop("output")), settings.pop("report")
    if report and Path(report).exists():
        raise FileExistsError(f"report={report} exists; choose another file or remove it first.")
    if report:
        require_writable(report, "report")
    lists = _lists(sources[0], settings.pop("limit"), settings["seed"])
    settings["suffix"] = settings["suffix"].replace("\\n", "\n")
    if "method" not in settings:
        del settings["seed"]
    from ..rerank_run import rerank_file  # imports torch

    _report(rerank_file(lists, output, **settings), output, len(lists), report)


def _check(settings: dict[str, Any]) -> None:
    """Numbers out of range are refused before anything is read."""
    rules = {
        "weight": (lambda x: 0 <= x <= 1, "in [0, 1] (1: the model alone)"),
        "normalize": (lambda x: x in ("none", "tokens", "bytes"), "one of none, tokens, bytes"),
        "window": (lambda x: x >= 2, "at least 2"),
        "limit": (lambda x: x >= 1, "at least 1"),
        "batch_size": (lambda x: x >= 1, "at least 1"),
        "think_steps": (lambda x: x >= 1, "at least 1; by=s1 is before thinking"),
        "seed": (lambda x: 0 <= x < 2**32, "in [0, 2**32)"),
    }
    for name, (holds, rule) in rules.items():
        if settings[name] is not None and not holds(settings[name]):
            raise ValueError(f"{name} must be {rule}, got {settings[name]!r}.")


def _lists(source: str, limit: int | None, seed: int):
    if source == _LIBRARY and not Path(source).exists():
        from ..noisy_lines import noisy_lines  # imports datasets

        return noisy_lines(seed)[:limit]
    from ..nbest_lists import read_lists

    return read_lists(source)[:limit]


def _report(found, output: Path, number: int, report: str | None) -> None:
    from rich.console import Console

    from ..run_folder import write_json

    console = Console(file=sys.stdout)
    if found is not None and found.orders:
        console.print(found.table())
    if found is not None and found.open_lists is not None:
        sys.stdout.write(
            f"the intervals of log Z leave the first place of {found.open_lists} lists open, and {found.open_swaps} pairs in all\n"
        )
    sys.stdout.write(f"{number} lists in {output}\n")
    if report:
        write_json(report, {"output": str(output), "measures": found and found.to_dict()})
