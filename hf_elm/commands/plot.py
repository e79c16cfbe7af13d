"""usage: hf-elm plot KIND checkpoint=PATH_OR_ID [key=value ...] [--key value ...]

Pictures of a model's energies and of a run's training. KIND is one of, for a MonArc model,

  energies     E of held-out text against tokens drawn from the LM and the ELM; log Z; the gain of each token
  calibration  whether next-token probabilities of LM and ELM are frequencies: reliability, ECE with intervals
  heatmap      a text (text=... or file=...) token by token, coloured by gain or energy; an HTML page or a picture

for a nanoEBM model,

  landscape    free energy around the prediction after prompt=..., with the path of refinement at its true height
  trajectory   that refinement by steps: the parts of F, the gradient, the likeliest tokens, the cut through both ends
  tokens       energies of the likeliest tokens before and after thinking
  positions    free energy of the prediction after every token of the prompt, by steps
  animate      film of the descent, a GIF
  gain         likelihood of held-out text against think_steps, and where thinking helps

and for a run of any family

  training     its metrics with their noise; checkpoint= is its folder

  hf-elm plot training checkpoint=runs/first output=training.svg
  hf-elm plot heatmap checkpoint=runs/first text="for name in names:" colour=energy output=heatmap.html
  hf-elm plot calibration checkpoint=runs/first corpus=other.txt max_tokens=2000
  hf-elm plot landscape checkpoint=runs/nano_ebm_shakespeare prompt="ROMEO:" think_steps=4 output=landscape.png
"""

import difflib
import sys
from pathlib import Path
from typing import Any

from ..command_schemas import PLOT_FAMILIES, PLOT_KINDS, PLOTS_OF_CORPORA, plot_schema
from ..families import family_of_checkpoint
from ..plots.figure_files import SUFFIXES, check_output, require_matplotlib
from ..recipes import literal_defaults, merge, split_arguments
from .evaluate import PARTS, run_settings


schema = plot_schema
_SUFFIXES = {"animate": (".gif",), "heatmap": (".html", *SUFFIXES)}


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
    suffixes = _SUFFIXES.get(kind, SUFFIXES)
    settings = merge(literal_defaults(known.values()), _own_settings(kind, given), given)
    settings["output"] = settings["output"] or f"{kind}{suffixes[0]}"
    if settings["dpi"] is None:
        settings["dpi"] = 80 if kind == "animate" else 150
    check_output(settings["output"], suffixes, "output")
    if not str(settings["output"]).lower().endswith(".html"):
        require_matplotlib()
    _check(settings)
    if kind == "heatmap":
        settings["text"] = _text(settings.pop("text"), settings.pop("file"))
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
    if family != PLOT_FAMILIES[kind]:
        needed = {
            "nano_ebm": "a nanoEBM model, whose predictions are refined",
            "monarc": "a MonArc model, whose tokens have energies",
        }
        own = ", ".join(name for name, of in PLOT_FAMILIES.items() if of == family)
        raise ValueError(
            f"checkpoint={given['checkpoint']} is a {family} model; plot {kind} needs {needed[PLOT_FAMILIES[kind]]}. Of this model "
            f"there are: {own}{', ' * bool(own)}training."
        )
    if kind not in PLOTS_OF_CORPORA:
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
        "colour": (lambda x: x in ("gain", "energy"), "gain or energy"),
        "method": (lambda x: x in ("auto", "exact", "sampled"), "auto, exact or sampled"),
        "num_samples": (lambda x: x >= 2, "at least 2"),
        "exact_top": (lambda x: x >= 1, "at least 1"),
        "max_rows": (lambda x: x >= 1, "at least 1"),
        "dpi": (lambda x: 20 <= x <= 1200, "from 20 to 1200"),
        "seed": (lambda x: 0 <= x < 2**32, "in [0, 2**32)"),
    }
    for name, (holds, rule) in rules.items():
        value = settings.get(name)
        if name in settings and (value is not None or name == "prompt") and not holds(value):
            raise ValueError(f"{name} must be {rule}, got {value!r}.")


def _text(text, file):
    """The text of a heat map, from one of two keys."""
    if (text is None) == (file is None):
        raise ValueError('heatmap needs one of text="..." and file=PATH.')
    if file is None:
        return text
    try:
        return Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"file={file} does not exist; give a text file, or the text itself as text=...."
        ) from None
    except (UnicodeDecodeError, IsADirectoryError):
        raise ValueError(
            f"file={file} is not a UTF-8 text file; convert it, or give the text itself as text=...."
        ) from None


def _written(kind, settings):
    if kind == "training":
        from ..plots.figure_files import save_figure
        from ..plots.training_curves import plot_training_curves, training_curves

        curves = training_curves(settings["checkpoint"])
        return save_figure(plot_training_curves(curves), settings["output"], settings["dpi"])
    from ..plots.checkpoint_figures import write_checkpoint_figure  # imports torch

    return write_checkpoint_figure(kind, **settings)
