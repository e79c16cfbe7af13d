"""Models and tokenizers read from folders and Hub ids, with one clear sentence when that does not work."""

import os
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from .adapter_folders import adapted_model, adapter_weights, base_of_adapter, looks_like_hub_id
from .families import class_of_checkpoint, family_of_checkpoint, find_family, resolve
from .hub_contents import refuse_pickled_weights


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
_LARGEST_ID = 2**24  # of a token
DTYPES = ("float32", "bfloat16", "float16", "float64")


def load_checkpoint(
    checkpoint: str, device: str | None = None, dtype: str | None = None, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The saved model of one of our families, in evaluation mode on ``device``, and its tokenizer.

    Raises:
        FileNotFoundError, ValueError: nothing there, another kind of model, damaged or missing weights, an unknown device.
    """
    model = load_model(checkpoint, dtype, **options).to(pick_device(device)).eval()
    return model, load_tokenizer(checkpoint, "checkpoint")


def load_model(
    checkpoint: str, dtype: str | None = None, *, as_saved: bool = False, **options: Any
) -> PreTrainedModel:
    """The saved model on the CPU; see `load_checkpoint`.

    Args:
        as_saved: as the class that was saved, any head; else as the class that the family trains.
    """
    trained = find_family(family_of_checkpoint(checkpoint)).model
    model_class = resolve(class_of_checkpoint(checkpoint) if as_saved else trained)
    model, missing = load_weights(model_class, checkpoint, dtype, **options)
    if as_saved and missing and all(name.startswith("pooler.") for name in missing):  # an encoder saved without one
        model, missing = load_weights(model_class, checkpoint, dtype, add_pooling_layer=False, **options)
    if missing:
        raise ValueError(
            f"checkpoint={checkpoint} is incomplete: {len(missing)} weights are missing, {missing[0]} first."
        )
    return model


def load_weights(
    model_class: type[PreTrainedModel], checkpoint: str, dtype: str | None = None, **options: Any
) -> tuple[PreTrainedModel, list[str]]:
    """The saved model as ``model_class`` on the CPU, and the names of its weights that the checkpoint lacks.

    Of an adapter's folder it is the base with the adapter merged, see `adapted_model`.

    Raises:
        ValueError: damaged weights, pickled ones (which are never opened), an unknown dtype.
    """
    refuse_pickled_weights(checkpoint, "checkpoint")
    if (base := base_of_adapter(checkpoint)) is not None:
        model, missing = load_weights(model_class, base, dtype, **options)
        return adapted_model(model, checkpoint), sorted(set(missing) - adapter_weights(checkpoint))
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f'dtype must be one of {", ".join(DTYPES)}, got "{dtype}".')
    if dtype is not None:
        options["dtype"] = getattr(torch, dtype)
    try:
        model, info = model_class.from_pretrained(
            checkpoint, output_loading_info=True, use_safetensors=True, **options
        )
    except Exception as error:  # whatever transformers makes of damaged files; HF_ELM_DEBUG=1 shows where
        raise ValueError(f"checkpoint={checkpoint} cannot be loaded: {_first_line(error)}") from error
    return model, sorted(info["missing_keys"])


def load_tokenizer(path: str, option: str) -> PreTrainedTokenizerBase:
    """The tokenizer saved at ``path`` (folder or Hub id), or with the base of an adapter; ``option`` is named in the error."""
    if (base := base_of_adapter(path)) is not None and not _has_tokenizer(path):
        path = path if looks_like_hub_id(path) and _has_tokenizer_on_hub(path) else base
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        largest = max(tokenizer.get_vocab().values(), default=0)
    except Exception as error:
        reason = _first_line(error)
        if os.path.isdir(path) and not _has_tokenizer(path):
            reason = "the folder has no tokenizer files; save one there with tokenizer.save_pretrained"
        raise ValueError(f"{option}={path} has no tokenizer that can be loaded: {reason}.") from error
    if largest > _LARGEST_ID:  # the ids in between would be listed one by one until the memory is full
        raise ValueError(f"{option}={path} has a tokenizer with the token id {largest}; ids go up to {_LARGEST_ID}.")
    return tokenizer


def _has_tokenizer(folder):
    return any(os.path.exists(os.path.join(folder, name)) for name in _TOKENIZER_FILES)


def _has_tokenizer_on_hub(repo_id):
    found = (
        cached_file(
            repo_id, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
        for name in _TOKENIZER_FILES
    )
    return any(path is not None for path in found)


def pick_device(device: str | None) -> torch.device:
    """``device`` as given, else CUDA where there is one, else the CPU.

    Raises:
        ValueError: no such device here.
    """
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f'device="{device}" cannot be used here: {_first_line(error)}') from None
    return found


def _first_line(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0][:600] if lines else ""
    return (
        first
        if first and isinstance(error, (OSError, ValueError, RuntimeError))
        else f"{type(error).__name__} {first}"
    )
