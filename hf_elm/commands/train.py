"""usage: hf-elm train [RECIPE.yaml] [key=value ...] [--key value ...]

Train a model on text: from scratch (model.preset), around an existing LM (model.base) or further (model.checkpoint).
RECIPE is a file or the name of a bundled recipe. The run's folder gets recipe.yaml, environment.json, metrics.jsonl,
curves.png, checkpoints, the model with its tokenizer, and likelihood.json. With peft.* it gets an adapter instead of the model, and its
base where that is saved nowhere else.

  hf-elm train monarc_tiny output_dir=runs/first
  hf-elm train monarc_tiny data.corpus=my_texts/ --train.max_steps 500 --train.learning-rate=1e-3
  hf-elm train monarc_tiny output_dir=runs/first resume=true
  hf-elm train model.checkpoint=runs/first output_dir=runs/adapter peft.r=8 peft.target_modules=[q_proj,v_proj]
  hf-elm train monarc_163m_fineweb --launch torchrun launch.nproc_per_node=8
  hf-elm train monarc_163m_fineweb launch=accelerate launch.config=fsdp2 launch.num_processes=8 -- --main_process_port 29501
  torchrun --nproc_per_node 8 -m hf_elm train monarc_163m_fineweb
"""

import contextlib
import itertools
from pathlib import Path
from typing import Any

import yaml

from .. import run_folder
from ..command_schemas import training_schema
from ..process_launch import FSDP_LAYERS, launch, split_launch, with_launch_keys
from ..recipe_keys import Schema
from ..recipes import find_recipe, literal_defaults, merge, read_recipe, split_arguments


DEFAULT_FAMILY = "monarc"
_SECTIONS_WITH_DEFAULTS = ("data", "tokenizer", "evaluate")


def schema() -> Schema:
    """The keys of the command."""
    return with_launch_keys(training_schema())


def run(arguments: list[str]) -> None:
    """Resolve the settings, claim the folder, train; with ``launch=`` as several processes."""
    if not arguments:
        raise ValueError(
            "give a recipe or key=value pairs, for example `hf-elm train monarc_tiny`; --help lists the keys."
        )
    request, arguments = split_launch(arguments)
    settings = resolve_settings(arguments, "train")
    start(request, "train", arguments, settings)


def start(request, command: str, arguments: list[str], settings: dict[str, Any]) -> None:
    """Train here, or become the launcher that does so on every rank; wrong settings are refused before anything starts."""
    if request is None:
        train(settings)
        return
    run_folder.claim(settings["train"]["output_dir"], settings, settings["resume"])
    model = settings["model"]
    own_layers = model.get("base") is None and model.get("text_config") is None
    launch(request, command, arguments, FSDP_LAYERS.get(settings["family"].replace("-", "_")) if own_layers else None)


def train(settings: dict[str, Any]) -> dict[str, Any] | None:
    """Run resolved settings; the held-out likelihood, if it was asked for."""
    if run_folder.is_main_process():
        run_folder.claim(settings["train"]["output_dir"], settings, settings["resume"])
    from ..training_run import execute, prepare  # imports torch

    return execute(prepare(settings))


def resolve_settings(arguments: list[str], command: str, default_recipe: str | None = None) -> dict[str, Any]:
    """Nested settings: defaults, then the recipe, then the command line.

    Raises:
        ValueError, FileNotFoundError: unknown keys, wrong types, more than one recipe, no such recipe.
    """
    schema = training_schema(named_family(arguments), named(arguments, "objective"))
    positionals, given = split_arguments(arguments, schema)
    if len(positionals) > 1:
        raise ValueError(f"one recipe at most, got {' and '.join(positionals)}. Settings are written key=value.")
    recipe = positionals[0] if positionals else default_recipe
    from_file = read_recipe(recipe, schema) if recipe else {}
    adapters = ("peft",) if any(name.startswith("peft.") for name in (*from_file, *given)) else ()
    layers = [_defaults(schema, recipe or command, (*_SECTIONS_WITH_DEFAULTS, *adapters)), from_file, given]
    return {"model": {}, **merge(*layers)}


def named_family(arguments: list[str]) -> str:
    """The family on the command line or in the recipe; it decides which other keys are valid."""
    return named(arguments, "family") or DEFAULT_FAMILY


def named(arguments: list[str], key: str) -> str | None:
    """The value of ``key`` on the command line or in the recipe, read before the valid keys are known."""
    for argument, following in itertools.pairwise([*arguments, ""]):
        name, _, value = argument.removeprefix("--").partition("=")
        if name == key:
            return None if (value or following).lower() in ("null", "none") else value or following
    for argument in arguments:
        with contextlib.suppress(
            FileNotFoundError, AttributeError, yaml.YAMLError, UnicodeDecodeError, RecursionError
        ):
            return yaml.safe_load(find_recipe(argument).read_text(encoding="utf-8")).get(key)
    return None


def _defaults(schema, name, sections):
    keys = [key for key in schema.keys.values() if key.name.split(".")[0] in sections or "." not in key.name]
    return literal_defaults(keys) | {"train.output_dir": f"runs/{Path(name).stem}"}
