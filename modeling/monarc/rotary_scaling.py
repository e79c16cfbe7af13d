"""Linear scaling of rotary positions: position m is treated as m / factor, so that rows may be ``factor`` times as long.

    f(x, m) = RoPE(x, m / factor)                                 (Chen et al. 2023, "position interpolation"; kaiokendev 2023)

The scaling lives in the language model's own config (``text_config.rope_parameters``), as transformers writes it: true tokens and
candidates get their rotary angles from the same module by the same position ids.
"""

import difflib
import math

from torch import nn
from transformers import PreTrainedConfig


KEYS = ("rope_type", "type", "factor", "rope_theta")
SPELLINGS = ("rope_scaling", "rope_parameters")


def with_rope_scaling(options: dict) -> dict:
    """``options`` in which ``rope_parameters``, as transformers 5 calls it, is ``rope_scaling``; neither where it is None.

    Raises:
        ValueError: both are there.
    """
    given = [name for name in SPELLINGS if options.get(name) is not None]
    if len(given) > 1:
        raise ValueError("rope_scaling and rope_parameters are two names of one thing; give one of them.")
    others = {name: value for name, value in options.items() if name not in SPELLINGS}
    return others | ({"rope_scaling": options[given[0]]} if given else {})


def scale_positions(config: PreTrainedConfig, scaling: dict) -> None:
    """Sets the rotary positions of the language model of ``config`` to ``scaling``, in place.

    ``max_position_embeddings`` is multiplied by the change of the factor.

    Args:
        scaling: ``{"rope_type": "linear", "factor": 4.0}``, or ``{"rope_type": "default"}`` for none; optionally ``rope_theta``.
            ``type`` is an older name of ``rope_type``.

    Raises:
        ValueError: a malformed ``scaling``, a model without rotary positions or with a scaling of another type.
    """
    factor = _checked_factor(scaling)
    present = getattr(config, "rope_parameters", None)
    if not present or "rope_type" not in present:
        raise ValueError(
            f"rope_scaling={scaling!r}: a {config.model_type} model has no rotary positions of one kind for all layers, so that there "
            "is nothing to scale."
        )
    if present["rope_type"] not in ("default", "linear"):
        raise ValueError(
            f'rope_scaling={scaling!r}: the model has rope_type="{present["rope_type"]}" already, which linear scaling cannot replace; '
            "leave it out."
        )
    old_factor = present.get("factor", 1.0) if present["rope_type"] == "linear" else 1.0
    kept = {key: value for key, value in present.items() if key not in ("rope_type", "type", "factor")}
    kept |= {"rope_theta": float(scaling["rope_theta"])} if scaling.get("rope_theta") is not None else {}
    kind = {"rope_type": "default"} if factor is None else {"rope_type": "linear", "factor": factor}
    config.rope_parameters = kept | kind
    config.max_position_embeddings = round(config.max_position_embeddings * (factor or 1.0) / old_factor)


def _checked_factor(scaling) -> float | None:
    """The factor that ``scaling`` says; None = no scaling."""
    example = 'for example {"rope_type": "linear", "factor": 4.0}'
    if not isinstance(scaling, dict):
        raise ValueError(f"rope_scaling must be a mapping, {example}, got {scaling!r}.")
    for key in scaling:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1, cutoff=0.0)[0]
            raise ValueError(f'rope_scaling has an unknown key "{key}"; the nearest is "{near}" ({example}).')
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind not in ("linear", "default") or scaling.get("type", kind) != kind:
        raise ValueError(
            f'rope_scaling["rope_type"] must be "linear", or "default" for none, got {kind!r}; {example}. Other types go to '
            "text_config.rope_parameters of a new model."
        )
    _check_number("rope_theta", scaling.get("rope_theta", 1.0), 0.0, "a positive number")
    if kind == "default":
        if scaling.get("factor") is not None:
            raise ValueError(f'rope_scaling["factor"]={scaling["factor"]!r} does not go with rope_type="default".')
        return None
    _check_number("factor", scaling.get("factor"), 1.0, f"a number of at least 1, {example}")
    return float(scaling["factor"])


def _check_number(key, value, least, rule):
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < least or value <= 0:
        raise ValueError(f'rope_scaling["{key}"] must be {rule}, got {value!r}.')


def renew_rotary_embeddings(lm: nn.Module) -> None:
    """Recomputes the rotary frequencies of a language model that was built before its config was scaled, in place."""
    config = lm.get_decoder().config
    for module in lm.modules():
        if hasattr(module, "inv_freq") and hasattr(module, "rope_type"):
            fresh = type(module)(config)
            module.rope_type, module.attention_scaling = fresh.rope_type, fresh.attention_scaling
            module.max_seq_len_cached = module.original_max_seq_len = config.max_position_embeddings
            for name, buffer in fresh.named_buffers(recurse=False):
                old = getattr(module, name)
                setattr(module, name, buffer.to(old.device, old.dtype))
