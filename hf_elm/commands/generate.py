"""usage: hf-elm generate checkpoint=PATH_OR_ID prompt="..." [key=value ...] [--key value ...]

Continue a prompt; tokens are printed as they come. Per token the LM proposes candidates and the energy chooses among them.

  hf-elm generate checkpoint=runs/first prompt="def main(" max_new_tokens=200 num_candidates=16
  echo "import os" | hf-elm generate checkpoint=runs/first --prompt - --temperature 0.8 stream=false
"""

import sys
from typing import Any

from ..command_schemas import generation_schema
from ..families import family_of_checkpoint
from ..recipes import literal_defaults, merge, split_arguments


schema = generation_schema
_OWN = {"checkpoint", "device", "dtype", "seed", "prompt", "stream"}


def run(arguments: list[str]) -> None:
    """Load, continue, print.

    Raises:
        ValueError: no checkpoint, unknown keys, a prompt that the tokenizer cannot take.
    """
    positionals, given = split_arguments(arguments, schema())
    if positionals or not given.get("checkpoint"):
        raise ValueError(
            'generate takes key=value pairs, first of all checkpoint=<folder or Hub id>, and prompt="...".'
        )
    own_schema = schema(family_of_checkpoint(given["checkpoint"]))
    _, given = split_arguments(arguments, own_schema)
    settings = merge(literal_defaults(own_schema.keys.values()), given)
    _check(settings)
    if settings["prompt"] == "-":
        settings["prompt"] = sys.stdin.read()
    from ..continuation import continue_prompt  # imports torch

    own = {name: settings[name] for name in _OWN}
    options: dict[str, Any] = {
        name: value for name, value in settings.items() if name not in _OWN and value is not None
    }
    continue_prompt(**own, **options)


def _check(settings):
    """Numbers out of range are refused before anything is loaded."""
    greedy = not settings["do_sample"]
    rules = {
        "max_new_tokens": (settings["max_new_tokens"] >= 1, "at least 1"),
        "temperature": (settings["temperature"] > 0, "above 0 (do_sample=false takes the likeliest tokens)"),
        "top_k": (settings["top_k"] is None or settings["top_k"] >= 1, "at least 1"),
        "top_p": (settings["top_p"] is None or 0 < settings["top_p"] <= 1, "in (0, 1]"),
        "repetition_penalty": (
            settings["repetition_penalty"] is None or settings["repetition_penalty"] > 0,
            "above 0; 1 is none",
        ),
        "num_return_sequences": (
            settings["num_return_sequences"] == 1 or (settings["num_return_sequences"] > 1 and not greedy),
            "1 with do_sample=false" if greedy else "at least 1",
        ),
        "seed": (0 <= settings["seed"] < 2**32, "in [0, 2**32)"),
    }
    for name, (holds, rule) in rules.items():
        if not holds:
            raise ValueError(f"{name} must be {rule}, got {settings[name]}.")
