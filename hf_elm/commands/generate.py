"""usage: hf-elm generate checkpoint=PATH_OR_ID prompt="..." [key=value ...] [--key value ...]

Continue a prompt; tokens are printed as they come. Per token the LM proposes candidates and the energy chooses among them. With
choose=... num_samples continuations are drawn, of any causal LM, and one of them is chosen by its likelihood or energy, or by the
answer that they agree on.

  hf-elm generate checkpoint=runs/first prompt="def main(" max_new_tokens=200 num_candidates=16
  echo "import os" | hf-elm generate checkpoint=runs/first --prompt - --temperature 0.8 stream=false
  hf-elm generate checkpoint=runs/first prompt="3+4=" choose=consistency num_samples=32 stop='\\n' answer_pattern='[0-9]+'
"""

import sys
from dataclasses import fields
from typing import Any

from ..choice_sections import ChoiceSection
from ..command_schemas import PLAIN_LM, generation_schema
from ..families import FAMILIES, family_of_checkpoint, read_model_type
from ..recipes import literal_defaults, merge, split_arguments


schema = generation_schema
_OWN = {"checkpoint", "device", "dtype", "seed", "prompt", "stream"}
_CHOICE = {field.name for field in fields(ChoiceSection)}
_NUM_SAMPLES = 16


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
    own_schema = schema(_family(given))
    _, given = split_arguments(arguments, own_schema)
    settings = merge(literal_defaults(own_schema.keys.values()), given)
    _check(settings)
    _check_choice(given, settings)
    if settings["prompt"] == "-":
        settings["prompt"] = sys.stdin.read()
    own = {name: settings[name] for name in _OWN}
    unused = _OWN if settings["choose"] else _OWN | _CHOICE
    options: dict[str, Any] = {
        name: value for name, value in settings.items() if name not in unused and value is not None
    }
    if settings["choose"]:
        _choose(own, options)
        return
    from ..continuation import continue_prompt  # imports torch

    continue_prompt(**own, **options)


def _family(given: dict[str, Any]) -> str:
    """The family whose keys are valid; a choice among samples is for other causal LMs too."""
    if given.get("choose") is None:
        return family_of_checkpoint(given["checkpoint"])
    kind = read_model_type(given["checkpoint"])
    return kind if kind in FAMILIES else PLAIN_LM


def _choose(own: dict[str, Any], options: dict[str, Any]) -> None:
    from ..chosen_continuation import print_chosen  # imports torch

    del own["stream"], options["num_return_sequences"]
    options["num_samples"] = options.get("num_samples", _NUM_SAMPLES)
    if "stop" in options:
        options["stop"] = options["stop"].replace("\\n", "\n")
    print_chosen(**own, **options)


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


def _check_choice(given, settings):
    """The keys of a choice, before anything is loaded; they concern nothing else."""
    if settings["choose"] is None:
        if foreign := sorted(_CHOICE & given.keys()):
            raise ValueError(
                f"{foreign[0]} concerns a choice among samples; give choose=likelihood, energy, vote or consistency."
            )
        return
    rules = {
        "choose": (
            lambda x: x in ("likelihood", "energy", "vote", "consistency"),
            "likelihood, energy, vote or consistency",
        ),
        "num_samples": (lambda x: x is None or x >= 1, "at least 1"),
        "samples_at_once": (lambda x: x >= 1, "at least 1"),
        "normalize": (lambda x: x in ("none", "tokens"), "none or tokens"),
        "do_sample": (lambda x: x, "true with choose: there is one likeliest continuation"),
        "num_return_sequences": (lambda x: x == 1, "1 with choose; num_samples is how many are drawn"),
    }
    for name, (holds, rule) in rules.items():
        if not holds(settings[name]):
            raise ValueError(f"{name} must be {rule}, got {settings[name]!r}.")
