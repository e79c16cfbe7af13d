"""Digests that tell one saved model from another, wherever it lies: weights, configuration and vocabulary."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


_NOT_OF_THE_MODEL = {"transformers_version", "architectures", "auto_map", "dtype", "torch_dtype"}


def model_fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """SHA-256 of the weights as they were loaded, of the configuration and of the vocabulary, and the dtype.

    The folder's name, the version of transformers that wrote it and where remote code lies do not count.
    """
    tensors = sorted(model.state_dict().items())
    parts = (part for name, value in tensors for part in (f"{name} {list(value.shape)}".encode(), _bytes(value)))
    config = json.dumps(_of_the_model(model.config.to_dict()), sort_keys=True, default=str)
    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    return {
        "weights_sha256": sha256(parts),
        "config_sha256": sha256([config.encode()]),
        "tokenizer_sha256": sha256([str(vocabulary).encode()]),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def file_states(checkpoint: str) -> list[list]:
    """Name, size and time of a saved folder's weights and JSON files, which tell a changed model without loading it.

    Nothing of a Hub id.
    """
    paths = sorted(path for path in Path(checkpoint).glob("*") if path.suffix in (".safetensors", ".json"))
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths if path.is_file()]


def sha256(parts: Iterable[Any]) -> str:
    """Hexadecimal SHA-256 of the parts, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _of_the_model(config: dict[str, Any]) -> dict[str, Any]:
    return {
        str(name): _of_the_model(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if not str(name).startswith(("_", "kernel_")) and name not in _NOT_OF_THE_MODEL
    }


def _bytes(tensor: torch.Tensor):
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
