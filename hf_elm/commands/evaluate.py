"""usage: hf-elm evaluate checkpoint=PATH_OR_ID [key=value ...] [--key value ...]

Likelihood of text under a saved model, beside that of the LM inside it: exact where the vocabulary is small, else an
interval with valid ends. Of a nanoEBM: before and after thinking. Of a masked language model: its loss at masked tokens, beside
the entropy of their frequencies.
In the folder of a run the held-out part of its own corpus is used unless data.* says otherwise.

  hf-elm evaluate checkpoint=runs/first
  hf-elm evaluate checkpoint=runs/first data.corpus=other.txt num_samples=128 output=likelihood.json
"""

import sys
from pathlib import Path
from typing import Any

from ..command_schemas import evaluation_schema, training_schema
from ..families import family_of_checkpoint, find_family, resolve
from ..recipe_keys import read_fields, section
from ..recipes import literal_defaults, merge, read_recipe, split_arguments
from ..run_folder import require_writable
from .train import named


schema = evaluation_schema
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
    name = family_of_checkpoint(given["checkpoint"])
    family = find_family(name)
    if family.evaluation:
        _refuse_foreign_keys(given, name, family.evaluation)
    settings = _settings(given)
    from ..checkpoint_likelihood import evaluate_checkpoint  # imports torch

    evaluate = resolve(family.evaluation) if family.evaluation else evaluate_checkpoint
    known = {key.name for key in read_fields(family.evaluation)} if family.evaluation else set(settings) - {"output"}
    result = evaluate(**{key: value for key, value in settings.items() if key in known})
    sys.stdout.write(f"{result}\n")
    if output:
        result.to_json(output)


def _refuse_foreign_keys(given, name, evaluation):
    """A key that says nothing about the evaluation of this family is refused, not ignored."""
    known = {key.name for key in read_fields(evaluation)} | {"output"}
    for key in given:
        if key not in known and not key.startswith("data."):
            raise ValueError(f"{key} does not concern the evaluation of a {name} model; leave it out.")


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """Defaults, then the run's own data and seed, then the command line; ``part`` is decided here."""
    own = run_settings(given["checkpoint"])
    settings = merge(literal_defaults(schema().keys.values()), own, given)
    same_text = bool(own) and not any(name.startswith("data.") and given[name] != own.get(name) for name in given)
    settings["part"] = settings["part"] or ("held_out" if same_text else "all")
    if settings["part"] not in PARTS:
        raise ValueError(f'part must be one of {", ".join(PARTS)}, got "{settings["part"]}".')
    return settings


def run_settings(checkpoint: str) -> dict[str, Any]:
    """Dotted data settings and seed of the run that wrote ``checkpoint``; nothing for other folders and Hub ids."""
    folder = Path(checkpoint)
    for path in (folder / "recipe.yaml", folder.resolve().parent / "recipe.yaml"):
        if folder.is_dir() and path.is_file():
            objective = named([str(path)], "objective")
            if objective is not None:  # trained on something else than a corpus of text
                return {}
            recipe = read_recipe(path, training_schema(family_of_checkpoint(checkpoint)))
            names = {key.name for key in section("hf_elm.recipe_sections:DataSection", "data.")} | {"seed"}
            return {name: value for name, value in recipe.items() if name in names}
    return {}
