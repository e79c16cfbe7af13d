"""usage: hf-elm plot KIND checkpoint=PATH_OR_ID [key=value ...] [--key value ...]

Pictures of a nanoEBM model's thinking, and of any run's training. KIND is one of

  landscape   free energy around the prediction after prompt=..., with the path of refinement at its true height
  trajectory  that refinement by steps: the parts of F, the gradient, the likeliest tokens, the cut through both ends
  tokens      energies of the likeliest tokens before and after thinking
  positions   free energy of the prediction after every token of the prompt, by steps
  animate     film of the descent, a GIF
  gain        likelihood of held-out text against think_steps, and where thinking helps
  training    metrics of a run (of every family); checkpoint= is its folder

  hf-elm plot landscape checkpoint=runs/nano_ebm_shakespeare prompt="ROMEO:" think_steps=4 output=landscape.png
  hf-elm plot gain checkpoint=runs/nano_ebm_shakespeare corpus=other.txt
  hf-elm plot training checkpoint=runs/nano_ebm_shakespeare output=training.svg
"""

import difflib
import sys
from typing import Any

from ..command_schemas import PLOT_KINDS, plot_schema
from ..families import family_of_checkpoint
from ..plots.figure_files import SUFFIXES, check_output, require_matplotlib
from ..recipes import literal_defaults, merge, split_arguments
from .evaluate import PARTS, run_settings


schema = plot_schema


def run(arguments: list[str]) -> None:
    """Check everything that can be checked at once, then load, compute, draw, write; prints the path.

    Raises:
        ValueError, FileNotFoundError, FileExistsError, ImportError: see the messages.
    """
    positionals, given = split_arguments(arguments, schema())
    kind = _kind(positionals)
    known = schema(kind).keys
    for key in given:
        if key not in known:
            raise ValueError(f"{key} does not concern plot {kind}; leave it out.")
    if not given.get("checkpoint"):
        raise ValueError(f"plot {kind} needs checkpoint=<folder or Hub id>.")
    suffixes = (".gif",) if kind == "animate" else SUFFIXES
    settings = merge(literal_defaults(known.values()), _own_settings(kind, given), given)
    settings["output"] = settings["output"] or f"{kind}{suffixes[0]}"
    if settings["dpi"] is None:
        settings["dpi"] = 80 if kind == "animate" else 150
    check_output(settings["output"], suffixes, "output")
    require_matplotlib()
    _check(settings)
    sys.stdout.write(f"{_written(kind, settings)}\n")


def _kind(positionals):
    kinds = ", ".join(PLOT_KINDS)
    if len(positionals) != 1:
        raise ValueError(
            f"plot takes one kind of picture and key=value pairs, got {positionals}; the kinds are {kinds}."
        )
    kind = positionals[0]
    if kind not in PLOT_KINDS:
        near = difflib.get_close_matches(kind, PLOT_KINDS, n=1, cutoff=0.0)[0]
        raise ValueError(f'unknown kind of picture "{kind}"; the nearest is "{near}". The kinds are {kinds}.')
    return kind


def _own_settings(kind, given) -> dict[str, Any]:
    """Dotted data settings and seed of the run that wrote the checkpoint, and the part of the text; other kinds need none."""
    if kind == "training":
        return {}
    family = family_of_checkpoint(given["checkpoint"])
    if family != "nano_ebm":
        raise ValueError(
            f"checkpoint={given['checkpoint']} is a {family} model; plot {kind} needs a nanoEBM model, whose predictions are "
            "refined (plot training takes the runs of every family)."
        )
    if kind != "gain":
        return {}
    own = run_settings(given["checkpoint"])
    same_text = bool(own) and all(given[name] == own.get(name) for name in given if name.startswith("data."))
    return own | {"part": "held_out" if same_text else "all"}


def _check(settings):
    """Numbers and words out of range are refused before anything is loaded."""
    rules = {
        "prompt": (lambda x: bool(x), 'some text, e.g. prompt="ROMEO:"'),
        "think_steps": (lambda x: x >= 1, "at least 1"),
        "num_tokens": (lambda x: x >= 1, "at least 1"),
        "max_tokens": (lambda x: x >= 1, "at least 1"),
        "mode": (lambda x: x in ("both", "3d", "contour"), "both, 3d or contour"),
        "span": (lambda x: 0 < x < 1e6, "positive; 2 is usual"),
        "grid": (lambda x: 2 <= x <= 1000, "from 2 to 1000"),
        "part": (lambda x: x in PARTS, f"one of {', '.join(PARTS)}"),
        "fps": (lambda x: 1 <= x <= 50, "from 1 to 50"),
        "frames_per_step": (lambda x: x >= 1, "at least 1"),
        "dpi": (lambda x: 20 <= x <= 1200, "from 20 to 1200"),
        "seed": (lambda x: 0 <= x < 2**32, "in [0, 2**32)"),
    }
    for name, (holds, rule) in rules.items():
        value = settings.get(name)
        if name in settings and (value is not None or name == "prompt") and not holds(value):
            raise ValueError(f"{name} must be {rule}, got {value!r}.")


def _written(kind, settings):
    if kind == "training":
        from ..plots.figure_files import save_figure
        from ..plots.training_curves import plot_training_curves, training_curves

        curves = training_curves(settings["checkpoint"])
        return save_figure(plot_training_curves(curves), settings["output"], settings["dpi"])
    from ..plots.checkpoint_figures import write_checkpoint_figure  # imports torch

    return write_checkpoint_figure(kind, **settings)
