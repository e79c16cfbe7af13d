"""usage: hf-elm eval checkpoint=PATH_OR_ID [tasks=NAME,NAME] [key=value ...] [--key value ...]

Tasks of EleutherAI's lm-evaluation-harness on both halves of a model in one table: MonArc's language model and the energy-based
model, nanoEBM before and after thinking. Every task of the harness by its name; shipped, for use without a network:

  library_cloze        which line comes next in a module of the interpreter's library (four choices)
  library_perplexity   bits/byte of such modules
  library_completion   the argument that a constructor stores, generated

MonArc's log-likelihoods are exact up to 512 tokens of vocabulary, else the middle of an interval (method, num_samples, exact_top,
seed); both ends are shown for perplexities, and for choices the number of answers that they leave open.

  hf-elm eval checkpoint=runs/first tasks=library_cloze limit=50
  hf-elm eval --tasks hellaswag,piqa --model runs/first --half elm --num_fewshot 5 --output results.json
  hf-elm eval checkpoint=runs/thinker think_steps=4 use_cache=runs/thinker/eval_cache
"""

import importlib.util
from pathlib import Path
from typing import Any

from ..command_schemas import task_schema
from ..families import family_of_checkpoint, find_family
from ..recipes import literal_defaults, merge, split_arguments
from ..run_folder import require_writable


schema = task_schema
_ENERGY_KEYS = ("method", "num_samples", "exact_top", "max_rows", "num_candidates")


def run(arguments: list[str]) -> None:
    """Check, run, print, write.

    Raises:
        ValueError, FileNotFoundError, FileExistsError, ImportError: see the messages.
    """
    positionals, given = split_arguments(arguments, schema())
    if positionals or not given.get("checkpoint"):
        raise ValueError("eval takes key=value pairs, first of all checkpoint=<folder or Hub id> (or --model).")
    settings = merge(literal_defaults(schema().keys.values()), given)
    tasks = [name.strip() for name in settings.pop("tasks").split(",") if name.strip()]
    _check(given, settings, tasks)
    output, log_samples = settings.pop("output"), settings.pop("log_samples")
    if output and Path(output).exists():
        raise FileExistsError(f"output={output} exists; choose another file or remove it first.")
    if output:
        require_writable(output, "output")
    if importlib.util.find_spec("lm_eval") is None:
        raise ImportError('the package lm_eval is missing; install it with pip install "hf_elm[eval]".')
    from rich.console import Console

    from ..harness_evaluation import evaluate_tasks  # imports torch

    result = evaluate_tasks(tasks=tasks, **settings)
    Console().print(result.table())
    if output:
        result.to_json(output, log_samples=log_samples)


def _check(given: dict[str, Any], settings: dict[str, Any], tasks: list[str]) -> None:
    """What does not fit the model or is out of range is refused before anything is loaded."""
    name = family_of_checkpoint(given["checkpoint"])
    family = find_family(name)
    if family.generation is None:
        raise ValueError(f"checkpoint={given['checkpoint']} is a {name} model, an encoder; eval needs a causal model.")
    if settings["choose"] == "energy" and not family.residual_energy:
        raise ValueError(f"choose=energy does not concern a {name} model; take choose=likelihood.")
    for key in ("choose_from", "answer_pattern") if settings["choose"] is None else ():
        if key in given:
            raise ValueError(f"{key} concerns a choice among generations; give choose=... too.")
    for key in _ENERGY_KEYS if not family.residual_energy else ("think_steps",):
        if key in given:
            raise ValueError(f"{key} does not concern a {name} model; leave it out.")
    if not tasks:
        raise ValueError("tasks names no task; give names separated by commas, e.g. tasks=library_cloze.")
    rules = {
        "batch_size": (lambda x: x >= 1, "at least 1"),
        "limit": (lambda x: x > 0, "above 0: documents per task, or below 1 their share"),
        "num_fewshot": (lambda x: x >= 0, "at least 0"),
        "bootstrap_iters": (lambda x: x >= 0, "at least 0"),
        "max_gen_toks": (lambda x: x >= 1, "at least 1"),
        "max_length": (lambda x: x >= 2, "at least 2"),
        "think_steps": (lambda x: x >= 1, "at least 1"),
        "num_candidates": (lambda x: x >= 1, "at least 1"),
        "choose": (
            lambda x: x in ("likelihood", "energy", "vote", "consistency"),
            "likelihood, energy, vote or consistency",
        ),
        "choose_from": (lambda x: x >= 1, "at least 1"),
        "seed": (lambda x: 0 <= x < 2**32, "in [0, 2**32)"),
    }
    for key, (holds, rule) in rules.items():
        if settings[key] is not None and not holds(settings[key]):
            raise ValueError(f"{key} must be {rule}, got {settings[key]!r}.")
    for key in _ENERGY_KEYS if not family.residual_energy else ():
        del settings[key]
    if not family.residual_energy:
        settings["num_candidates"] = None
