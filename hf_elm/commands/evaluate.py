"""usage: hf-elm evaluate checkpoint=PATH_OR_ID [key=value ...] [--key value ...]

Likelihood of text under a saved model, beside that of the LM inside it: exact where the vocabulary is small, else an
interval with valid ends. In the folder of a run the held-out part of its own corpus is used unless data.* says otherwise.

  hf-elm evaluate checkpoint=runs/first
  hf-elm evaluate checkpoint=runs/first data.corpus=other.txt num_samples=128 output=likelihood.json
"""

import sys
from pathlib import Path
from typing import Any

from ..command_schemas import evaluation_schema, training_schema
from ..families import family_of_checkpoint, find_family
from ..recipe_keys import section
from ..recipes import literal_defaults, merge, read_recipe, split_arguments
from ..run_folder import require_writable


schema = evaluation_schema
_OWN = {"checkpoint", "device", "dtype", "part", "equal_compute_lm", "output", "data"}
PARTS = ("held_out", "train", "all")


def run(arguments: list[str]) -> None:
    """Load, score, print, write.

    Raises:
        ValueError, FileExistsError: see the messages.
    """
    positionals, given = split_arguments(arguments, schema())
    if positionals or not given.get("checkpoint"):
        raise ValueError("evaluate takes key=value pairs, first of all checkpoint=<folder or Hub id>.")
    output = given.get("output")
    if output and Path(output).exists():
        raise FileExistsError(f"output={output} exists; choose another file or remove it first.")
    if output:
        require_writable(output, "output")
    family = family_of_checkpoint(given["checkpoint"])
    if not find_family(family).residual_energy:
        raise ValueError(
            f"checkpoint={given['checkpoint']} is a {family} model, which has no residual energies to measure; its trainer's "
            "evaluate() reports the likelihood before and after thinking."
        )
    settings = _settings(given)
    from ..checkpoint_likelihood import evaluate_checkpoint  # imports torch

    options = {name: value for name, value in settings.items() if name not in _OWN}
    sources = {name: settings[name] for name in _OWN - {"output"}}
    result = evaluate_checkpoint(**sources, **options)
    sys.stdout.write(f"{result}\n")
    if output:
        result.to_json(output)


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """Defaults, then the run's own data and seed, then the command line; ``part`` is decided here."""
    own = _run_settings(given["checkpoint"])
    settings = merge(literal_defaults(schema().keys.values()), own, given)
    same_text = bool(own) and not any(name.startswith("data.") and given[name] != own.get(name) for name in given)
    settings["part"] = settings["part"] or ("held_out" if same_text else "all")
    if settings["part"] not in PARTS:
        raise ValueError(f'part must be one of {", ".join(PARTS)}, got "{settings["part"]}".')
    return settings


def _run_settings(checkpoint: str) -> dict[str, Any]:
    """Dotted data settings and seed of the run that wrote ``checkpoint``; nothing for other folders and Hub ids."""
    folder = Path(checkpoint)
    for path in (folder / "recipe.yaml", folder.resolve().parent / "recipe.yaml"):
        if folder.is_dir() and path.is_file():
            recipe = read_recipe(path, training_schema(family_of_checkpoint(checkpoint)))
            names = {key.name for key in section("hf_elm.recipe_sections:DataSection", "data.")} | {"seed"}
            return {name: value for name, value in recipe.items() if name in names}
    return {}
