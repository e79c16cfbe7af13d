"""usage: hf-elm compare MODEL [MODEL ...] [data.corpus=TEXT] [key=value ...] [--key value ...]

Several models on the same documents: nats/token, bits/byte, differences paired by document with standard errors, parameters, and
the compute that their runs tell of. MonArc stands there as its language model and as the energy-based model, nanoEBM before and
after thinking, any other causal LM as it is. Models with different tokenizers are compared in bits/byte only. With output=, models
that are done are kept, and the same command goes on after an interruption.

  hf-elm compare runs/first runs/second
  hf-elm compare runs/monarc runs/nano_ebm path/to/gpt2 data.corpus=other.txt documents=200 output=comparison.json
"""

import sys
from pathlib import Path
from typing import Any

from ..command_schemas import comparison_schema
from ..families import FAMILIES, read_model_type
from ..recipes import literal_defaults, merge, split_arguments
from ..run_folder import require_writable
from .evaluate import PARTS, run_settings


schema = comparison_schema


def run(arguments: list[str]) -> None:
    """Check, score, print, write.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: see the messages.
    """
    checkpoints, given = split_arguments(arguments, schema())
    if not checkpoints:
        raise ValueError("compare takes one or more models (folders or Hub ids), then key=value pairs.")
    for checkpoint in checkpoints:
        _require_causal(checkpoint)
    settings = _settings(checkpoints[0], given)
    _check(settings)
    output = settings["output"]
    if output and Path(output).exists():
        raise FileExistsError(f"output={output} exists; choose another file or remove it first.")
    if output:
        require_writable(output, "output")
    result = _compared(checkpoints, settings)
    from rich.console import Console

    Console(file=sys.stdout).print(result.table())


def _require_causal(checkpoint):
    kind = read_model_type(checkpoint)
    if kind in FAMILIES and FAMILIES[kind].generation is None:
        raise ValueError(f"{checkpoint} holds a {kind} model, an encoder; compare takes causal models.")


def _settings(first: str, given: dict[str, Any]) -> dict[str, Any]:
    """Defaults, then the text of the first model's run, then the command line; ``part`` is decided here."""
    own = run_settings(first) if read_model_type(first) in FAMILIES else {}
    names = schema().keys
    own = {name: value for name, value in own.items() if name in names and name != "seed"}
    settings = merge(literal_defaults(names.values()), own, given)
    same_text = bool(own) and not any(name.startswith("data.") and given[name] != own.get(name) for name in given)
    settings["part"] = settings["part"] or ("held_out" if same_text else "all")
    return settings


def _check(settings):
    rules = {
        "part": (lambda x: x in PARTS, f"one of {', '.join(PARTS)}"),
        "documents": (lambda x: x == 0 or x >= 2, "at least 2, or 0 for all"),
        "document_bytes": (lambda x: x == 0 or x >= 16, "at least 16, or 0 for whole documents"),
        "window": (lambda x: x is None or x >= 2, "at least 2"),
        "batch_size": (lambda x: x >= 1, "at least 1"),
        "think_steps": (lambda x: x is None or x >= 1, "at least 1"),
        "seed": (lambda x: 0 <= x < 2**32, "in [0, 2**32)"),
    }
    for name, (holds, rule) in rules.items():
        if not holds(settings[name]):
            raise ValueError(f"{name} must be {rule}, got {settings[name]!r}.")


def _compared(checkpoints, settings):
    from ..checkpoint_likelihood import corpus_part  # imports torch
    from ..model_comparison import chosen_documents, compare_models
    from ..trainers.corpora import load_corpus
    from ..training_run import corpus_options

    data, part, seed = settings.pop("data"), settings.pop("part"), settings["seed"]
    corpus = load_corpus(**corpus_options(data), seed=split_seed(checkpoints[0], seed))
    rows = corpus_part(corpus, part)
    texts = (row["text"] for row in rows)
    documents = chosen_documents(texts, settings.pop("documents"), settings.pop("document_bytes"), seed)
    return compare_models(checkpoints, documents, **settings)


def split_seed(checkpoint: str, seed: int) -> int:
    """The seed by which the run of ``checkpoint`` held out documents; ``seed`` where it is not known."""
    own = run_settings(checkpoint) if read_model_type(checkpoint) in FAMILIES else {}
    return own.get("seed", seed)
