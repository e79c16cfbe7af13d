"""How many tokens a saved model saw at once when it was trained: the window in which its likelihoods are what they should be.

A model with 1,024 positions that was trained on rows of 64 tokens has never met a longer context; scored at all of its positions
it looks far worse than it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import yaml

from .adapter_folders import base_of_adapter
from .families import FAMILIES, read_model_type, resolve
from .run_folder import RECIPE


QUICKSTART = "quickstart.json"


class Window(NamedTuple):
    """A number of tokens (None: no limit) and where it comes from, for the reader of a result."""

    tokens: int | None
    origin: str


def trained_window(checkpoint: str) -> Window:
    """The row length in the recipe (or quickstart record) of the run that wrote ``checkpoint``, else the positions of its config.

    Raises:
        FileNotFoundError, ValueError: no model there, see `hf_elm.families.read_model_type`.
    """
    length = row_length(checkpoint)
    positions = config_positions(checkpoint)
    if length is not None and (positions is None or length <= positions):
        return Window(length, f"the rows that {checkpoint} was trained on")
    return Window(positions, f"the positions of {checkpoint}" if positions else "whole documents")


def row_length(checkpoint: str) -> int | None:
    """``data.sequence_length`` of the run whose folder, or folder within it, ``checkpoint`` is; None where no file tells."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        return None
    for place in (folder, folder.resolve().parent):
        length = _in_recipe(place / RECIPE) or _in_record(place / QUICKSTART)
        if length is not None:
            return length
    return None


def config_positions(checkpoint: str) -> int | None:
    """``max_position_embeddings`` of the saved configuration, an adapter's base included; None where it does not say."""
    from transformers import AutoConfig

    place = checkpoint
    while (base := base_of_adapter(place)) is not None:
        place = base
    kind = read_model_type(place)
    config_class = resolve(FAMILIES[kind].config) if kind in FAMILIES else AutoConfig
    try:
        config = config_class.from_pretrained(place)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # loading the model says what is wrong
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def common_window(checkpoints: Iterable[str], asked: int | None = None) -> Window:
    """One window for all models, so that they are compared with the same contexts: the smallest of theirs, or the one asked for.

    What is asked for is cut to the positions of the model that has the fewest.
    """
    checkpoints = list(checkpoints)
    own = [trained_window(each) for each in checkpoints]
    if asked is None:
        limited = [window for window in own if window.tokens is not None]
        return min(limited, key=lambda window: window.tokens) if limited else own[0]
    places = [(positions, each) for each in checkpoints if (positions := config_positions(each)) is not None]
    if places and min(places)[0] < asked:
        return Window(min(places)[0], f"the positions of {min(places)[1]}, fewer than the {asked} asked for")
    return Window(asked, "as asked for")


def _in_recipe(path: Path) -> int | None:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]
        return _positive(data["sequence_length"])
    except (OSError, KeyError, TypeError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        return None


def _in_record(path: Path) -> int | None:
    try:
        return _positive(json.loads(path.read_text(encoding="utf-8"))["sequence_length"])
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        return None


def _positive(value) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 2 else None
