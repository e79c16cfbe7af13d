"""usage: hf-elm detect INPUT [INPUT ...] detector=FOLDER [output=FILE.jsonl] [key=value ...] [--key value ...]
       hf-elm detect train checkpoint=PATH_OR_ID output=FOLDER [key=value ...] [--key value ...]

Is a text made by this model, or human? `detect train` draws machine texts from the model as continuations of prompts
cut from documents that it was not trained on, whose own continuations are the human texts; reads both by the model
(log p, rank, entropy, energy, log Z of every token); fits a small network that gives each token a weight; and prints
how well it tells test texts apart, beside perplexity, energy and curvature. Its keys are those under "detect train"
and "data"; checkpoint, output, batch_size and device as well, with output a folder.

INPUT is a .txt file (a text per line), a .jsonl, .csv, .tsv or .parquet table, a folder of text files (a text per
file), or - for lines of standard input. An interrupted command is continued by the same command.

  hf-elm detect train checkpoint=runs/first output=runs/detector
  hf-elm detect texts.jsonl detector=runs/detector output=scores.jsonl text_column=body
"""

import sys
from pathlib import Path
from typing import Any

from ..detection_sections import detection_help_schema, detection_schema, detection_training_schema
from ..embedding_inputs import read_inputs
from ..families import FAMILIES, read_model_type
from ..recipes import literal_defaults, merge, split_arguments
from ..run_folder import require_empty, require_writable
from .evaluate import PARTS, run_settings


schema = detection_help_schema
_SAMPLING = ("temperature", "top_p", "top_k", "num_candidates")
_OF_MONARC = ("method", "num_samples", "exact_top", "max_rows")


def run(arguments: list[str]) -> None:
    """Train a detector, or judge texts by one.

    Raises:
        ValueError, FileNotFoundError, FileExistsError, ImportError: see the messages.
    """
    if arguments[:1] == ["train"]:
        _train(arguments[1:])
    else:
        _judge(arguments)


def _judge(arguments):
    sources, given = split_arguments(arguments, detection_schema())
    if not given.get("detector"):
        raise ValueError(
            "detect needs detector=FOLDER, which `hf-elm detect train` writes; see `hf-elm detect --help`."
        )
    if not sources:
        raise ValueError("detect needs an INPUT: files, folders of text files, or - for standard input.")
    settings = merge(literal_defaults(detection_schema().keys.values()), given)
    if settings["batch_size"] is not None and settings["batch_size"] < 1:
        raise ValueError(f"batch_size must be at least 1, got {settings['batch_size']}.")
    output = settings.pop("output")
    if output and Path(output).suffix != ".jsonl":
        raise ValueError(f"output={output} must end in .jsonl: one JSON object per text is written.")
    if output and Path(output).exists():
        raise FileExistsError(f"output={output} exists; choose another file or remove it first.")
    if output:
        require_writable(output, "output")
    inputs = read_inputs(sources, settings.pop("text_column"), settings.pop("id_column"))
    from ..detection_run import judge_texts  # imports torch

    judge_texts(inputs, output, **settings)


def _train(arguments):
    positionals, given = split_arguments(arguments, detection_training_schema())
    for key in ("checkpoint", "output"):
        if positionals or not given.get(key):
            raise ValueError(
                f"detect train takes key=value pairs, among them checkpoint= and output=; {key} is missing."
                if not positionals
                else f'detect train takes key=value pairs, got "{positionals[0]}".'
            )
    settings = _training_settings(given)
    _check(settings)
    require_empty(settings["output"], "output")
    from rich.console import Console

    from ..detection_run import train_on_corpus  # imports torch

    report = train_on_corpus(**settings)
    for test in report.tests:
        Console(file=sys.stdout).print(report.table(test))
    sys.stdout.write(f"the detector is in {settings['output']}\n")


def _training_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Defaults, then the text of the model's run, then the command line."""
    kind = read_model_type(given["checkpoint"])
    if kind in FAMILIES and FAMILIES[kind].generation is None:
        raise ValueError(
            f"checkpoint={given['checkpoint']} holds a {kind} model, an encoder; detect needs a causal model."
        )
    keys = detection_training_schema().keys
    own = run_settings(given["checkpoint"]) if kind in FAMILIES else {}
    own = {name: value for name, value in own.items() if name in keys}
    settings = merge(literal_defaults(keys.values()), own, given)
    settings["split_seed"] = own.get("seed", 0)  # which documents the run held out, whatever is drawn here
    settings["seed"] = given.get("seed", 0)
    settings["sampling"] = {name: settings.pop(name) for name in _SAMPLING}
    unfit = (() if kind == "monarc" else _OF_MONARC) + (() if kind == "nano_ebm" else ("think_steps",))
    for name in (*unfit, *(("num_candidates",) if kind != "monarc" else ())):
        if name in given:
            raise ValueError(f"{name} does not concern a {kind} model; leave it out.")
        settings.pop(name, None)  # num_candidates has gone to the sampling
    return settings


def _check(settings: dict[str, Any]) -> None:
    """What is out of range is refused before anything is loaded."""
    found = settings | settings["sampling"]
    rules = {
        "part": (lambda x: x in PARTS, f"one of {', '.join(PARTS)}"),
        "documents": (lambda x: x == 0 or x >= 3, "at least 3, or 0 for all"),
        "passages": (lambda x: x >= 1, "at least 1"),
        "document_tokens": (lambda x: x >= 2, "at least 2"),
        "prompt_tokens": (lambda x: x >= 1, "at least 1"),
        "temperature": (lambda x: x > 0, "above 0"),
        "top_p": (lambda x: x is None or 0 < x <= 1, "in (0, 1]"),
        "top_k": (lambda x: x is None or x >= 1, "at least 1"),
        "num_candidates": (lambda x: x >= 2, "at least 2; one is the generator lm"),
        "num_heads": (lambda x: x >= 0, "at least 0"),
        "hidden_size": (lambda x: x >= 1, "at least 1"),
        "epochs": (lambda x: x >= 1, "at least 1"),
        "batch_size": (lambda x: x >= 1, "at least 1"),
        "resamples": (lambda x: x >= 100, "at least 100"),
        "seed": (lambda x: 0 <= x < 2**32, "in [0, 2**32)"),
    }
    for name, (holds, rule) in rules.items():
        if not holds(found[name]):
            raise ValueError(f"{name} must be {rule}, got {found[name]!r}.")
