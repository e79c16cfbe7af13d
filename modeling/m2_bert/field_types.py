"""Types of configuration fields, checked by their annotations; the same file in every family."""

import contextlib
import math
import types
import typing
from collections.abc import Iterator


_NAMES = {
    bool: "true or false",
    int: "an integer of 64 bits",
    float: "a finite number",
    str: "text",
    dict: "a mapping",
    type(None): "None",
}
MOST = {"num_labels": 2**20, "num_hidden_layers": 2**16, "n_layer": 2**16, "num_layers": 2**16}
MAPPINGS = {
    "attn_implementation": (str, dict),
    "dtype": (str, dict),
    "torch_dtype": (str, dict),
    "quantization_config": (dict,),
    "auto_map": (dict,),
}


def refuse_wrong_types(config, annotations: dict[str, typing.Any]) -> None:
    """Raise ValueError for the first field of ``config`` whose value is not of the type that it is annotated with.

    A whole number is a float too, nan and infinities are none; true and false are no numbers.
    """
    for name, annotation in annotations.items():
        kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
        value = getattr(config, name)
        if not any(_is_of(value, kind) for kind in kinds):
            rule = " or ".join(
                _NAMES.get(kind, "a list of texts" if typing.get_origin(kind) else kind.__name__) for kind in kinds
            )
            raise ValueError(f"{name} must be {rule}, got {short(repr(value), 200)}.")


def refuse_unusable(fields: dict[str, typing.Any]) -> None:
    """Raise ValueError for fields of every config that transformers takes without a look and cannot use later.

    Those of `MOST` it lists one by one until the memory is full.
    """
    for name, most in MOST.items():
        value = fields.get(name)
        if isinstance(value, (int, float)) and value > most:
            raise ValueError(f"{name} must be at most {most}, got {short(repr(value), 200)}.")
    for name, kinds in MAPPINGS.items():
        value = fields.get(name)
        objects = hasattr(value, "to_dict") or type(value).__name__ == "dtype"  # of transformers and torch themselves
        if value is not None and not isinstance(value, kinds) and not objects:
            rule = " or ".join(_NAMES[kind] for kind in kinds)
            raise ValueError(f"{name} must be {rule} or None, got {short(repr(value), 200)}.")


def _is_of(value, kind) -> bool:
    if typing.get_origin(kind) in (list, tuple):
        return isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value)
    if kind in (int, float) and isinstance(value, int):
        return not isinstance(value, bool) and -(2**63) <= value < 2**63  # what torch takes
    if kind is float:
        return isinstance(value, float) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


@contextlib.contextmanager
def refusals_of(what: str) -> Iterator[None]:
    """Whatever transformers makes of values that it cannot use becomes a ValueError that begins with ``what``."""
    try:
        yield
    except Exception as error:
        reason = short(" ".join(str(error).split()) or type(error).__name__, 600)
        raise ValueError(f"{what}: {reason}") from error


def short(text: str, length: int) -> str:
    """The first ``length`` characters."""
    return text if len(text) <= length else f"{text[:length]} ..."
