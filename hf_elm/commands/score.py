"""usage: hf-elm score INPUT [INPUT ...] checkpoint=PATH_OR_ID output=FILE [key=value ...] [--key value ...]
       hf-elm score data.corpus=NAME checkpoint=PATH_OR_ID output=FILE [key=value ...] [--key value ...]

A row per document: log-likelihood, nats/token and bits/byte under every distribution of the model (MonArc: its LM and the
energy-based model, an interval where log Z is not summed whole, and the energy; nanoEBM: before and after thinking; any other causal
LM: itself), and with tokens=true the same for every token. INPUT is a .txt file (a document per line), a .jsonl, .csv, .tsv or
.parquet table, a folder of text files, or - for lines of standard input; data.corpus is anything to train on, such as stdlib. Each
document is read by itself, from its start. An interrupted run is continued by the same command; the output appears when it is
complete, with a record of how the numbers were found beside it (FILE.json).

  hf-elm score docs.jsonl checkpoint=runs/first output=scores.parquet text_column=body keep=[domain]
  hf-elm score data.corpus=stdlib checkpoint=runs/first output=scores.jsonl documents=100 document_bytes=1024
"""

import sys
from typing import Any

from ..causal_settings import keep_fitting
from ..embedding_inputs import read_inputs
from ..families import FAMILIES, read_model_type
from ..recipes import literal_defaults, merge, split_arguments
from ..score_sections import score_schema
from .evaluate import PARTS, run_settings


schema = score_schema
_OF_FILES = ("id_column", "keep")
_METHODS = ("auto", "exact", "sampled", "certified", "none")


def run(arguments: list[str]) -> None:
    """Check, read, score, write, print.

    Raises:
        ValueError, FileNotFoundError, FileExistsError, ImportError: see the messages.
    """
    sources, given = split_arguments(arguments, schema())
    for key in ("checkpoint", "output"):
        if not given.get(key):
            raise ValueError(f"score needs {key}=...; see `hf-elm score --help`.")
    settings = _settings(sources, given)
    _check(settings)
    keep_fitting("score", given, settings)
    from ..scored_tables import check_table_output

    output = check_table_output(settings.pop("output"))
    inputs = _inputs(sources, settings)
    from ..scoring_inputs import drawn  # imports torch
    from ..scoring_run import score_inputs
    from ..trained_windows import common_window

    inputs = drawn(inputs, settings.pop("documents"), settings["seed"])
    settings["window"] = common_window([settings["checkpoint"]], settings["window"])
    if "method" not in settings:
        del settings["seed"]
    record = score_inputs(inputs, output, **settings)
    sys.stdout.write(f"{_summary(record)}\n{record['num_documents']:,} documents in {output}\n")


def _settings(sources: list[str], given: dict[str, Any]) -> dict[str, Any]:
    """Defaults, for a part of a run's corpus the data section of that run, then the command line."""
    part, own = given.get("part", "all"), {}
    names = schema().keys
    if part != "all" and part in PARTS and read_model_type(given["checkpoint"]) in FAMILIES:
        own = run_settings(given["checkpoint"])
        own = {name: value for name, value in own.items() if name in names or name == "data.text_column"}
        own = {"text_column" if name == "data.text_column" else name: value for name, value in own.items()}
    settings = merge(literal_defaults(names.values()), own, given)
    settings["split_seed"] = own.get("seed", 0)  # not the seed of draws: that must not move the split
    settings["seed"] = given.get("seed", 0)
    if sources and settings["data"]["corpus"] is not None and "data.corpus" in given:
        raise ValueError("score takes INPUT files or data.corpus, not both.")
    if sources and part != "all":
        raise ValueError(f"part={part} is of data.corpus; files are scored whole.")
    if not sources and settings["data"]["corpus"] is None:
        raise ValueError(
            "score needs an INPUT (files, folders of text files, - for standard input) or data.corpus=..."
        )
    return settings


def _check(settings: dict[str, Any]) -> None:
    """What is out of range is refused before anything is read."""
    rules = {
        "part": (lambda x: x in PARTS, f"one of {', '.join(PARTS)}"),
        "method": (lambda x: x in _METHODS, f"one of {', '.join(_METHODS)}"),
        "documents": (lambda x: x >= 0, "at least 1, or 0 for all"),
        "document_bytes": (lambda x: x == 0 or x >= 16, "at least 16, or 0 for whole documents"),
        "window": (lambda x: x is None or x >= 2, "at least 2"),
        "batch_size": (lambda x: x >= 1, "at least 1"),
        "think_steps": (lambda x: x is None or x >= 1, "at least 1; s1 is before thinking"),
        "seed": (lambda x: 0 <= x < 2**32, "in [0, 2**32)"),
    }
    for name, (holds, rule) in rules.items():
        if not holds(settings[name]):
            raise ValueError(f"{name} must be {rule}, got {settings[name]!r}.")


def _inputs(sources: list[str], settings: dict[str, Any]):
    """The documents, read; takes the keys of reading out of the settings."""
    data, part, split_seed = (settings.pop(name) for name in ("data", "part", "split_seed"))
    text_column, id_column, keep = (settings.pop(name) for name in ("text_column", *_OF_FILES))
    if sources:
        return read_inputs(sources, text_column, id_column, keep or ())
    for name, value in zip(_OF_FILES, (id_column, keep), strict=True):
        if value is not None:
            raise ValueError(
                f"{name} concerns tables given as INPUT; the documents of data.corpus have ids of their own."
            )
    from ..scoring_inputs import corpus_inputs  # imports torch

    return corpus_inputs(data, part, split_seed, text_column, settings["documents"])


def _summary(record: dict[str, Any]) -> str:
    """What was found in all, a line per distribution."""
    scoring = record["settings"]["scoring"]
    how = f"log Z {scoring['method']}" if "method" in scoring else ""
    if scoring.get("method") == "sampled":
        how += f" ({scoring['exact_top']} tokens exact, {scoring['num_samples']} samples per position)"
    window = f"window of {record['window']:,} tokens ({record['window_origin']})" if record["window"] else "no window"
    lines = [
        f"{record['num_tokens']:,} tokens, {record['num_bytes']:,} bytes; "
        + "; ".join(part for part in (how, window) if part)
    ]
    means = record["means"]
    for name in means:
        base, quantity, end = name.partition("_nats_per_token")
        if not quantity:
            continue
        nats, bits = means[f"{base}_nats_per_token{end}"], means[f"{base}_bits_per_byte{end}"]
        words = {"_lower": ", at least", "_upper": ", at most"}.get(end, "")
        lines.append(f"  {base + words:<15} {_shown(nats)} nats/token  {_shown(bits)} bits/byte")
    left = record["num_documents"] - record["num_scored_documents"]
    if left:
        lines.append(f"  {left:,} documents have fewer than two tokens that the tokenizer knows, and no scores")
    if record["num_unknown_tokens"]:
        lines.append(
            f"  {record['num_unknown_tokens']:,} tokens of text that the tokenizer does not know are left out"
        )
    return "\n".join(lines)


def _shown(estimate: dict[str, float | None]) -> str:
    error = "" if estimate["standard_error"] is None else f" ±{estimate['standard_error']:.4f}"
    return f"{estimate['value']:.4f}{error}"
