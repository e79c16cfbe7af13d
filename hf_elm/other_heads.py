"""Heads that a checkpoint holds beside the one that its class has, such as a converted encoder's."""

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.utils import cached_file


WEIGHTS = "model.safetensors"
ENCODER_FAMILIES = ("m2_bert",)  # whose every class reads the weights of any other


def keep_other_heads(checkpoint: str, folder: str | Path, model: PreTrainedModel) -> list[str]:
    """Adds the tensors of ``checkpoint`` that ``model`` has no place for to the weights that it has saved in ``folder``.

    Returns:
        their names, as they are stored.
    """
    if model.config.model_type not in ENCODER_FAMILIES:
        return []
    source = cached_file(
        checkpoint, WEIGHTS, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    saved = Path(folder) / WEIGHTS
    if source is None or not saved.is_file():  # pickled, or in several files
        return []
    tied = set(model.all_tied_weights_keys)
    ours = {_full_name(name, model): tensor for name, tensor in load_file(saved).items()}
    with safe_open(source, "pt") as stored:
        names = {_full_name(name, model, stored.keys()): name for name in stored.keys()}  # noqa: SIM118 (not a dict)
        others = {name: stored.get_tensor(own) for name, own in names.items() if name not in ours and name not in tied}
    if others:
        save_file({**ours, **others}, saved, metadata={"format": "pt"})
    return sorted(others)


def _full_name(name, model, every=None):
    """The name below a head: an encoder saved alone has none of the prefix that it has inside one."""
    prefix = f"{model.base_model_prefix}."
    alone = model.base_model is model if every is None else not any(key.startswith(prefix) for key in every)
    return prefix + name if alone else name
