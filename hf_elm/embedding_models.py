"""Saved M2-BERT models as sentence embedders, those that sentence-transformers has trained included."""

import json
import os
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from .embedding import POOLINGS
from .families import family_of_checkpoint
from .saved_models import load_tokenizer, load_weights, pick_device


MODULES = "modules.json"  # of a sentence-transformers folder


def load_embedder(
    checkpoint: str, device: str | None = None, dtype: str | None = None, pool_with_dense: bool | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """`M2BertForSentenceEmbedding` in evaluation mode on ``device``, and its tokenizer.

    Of a sentence-transformers folder the pooling, the dense layer and the normalisation are taken from its modules:
    training there changes those and not the pooler in the model's own weights.

    Args:
        pool_with_dense: False = the dense layer is not needed, and may be missing.

    Raises:
        FileNotFoundError, ValueError: nothing there, a model of another family, missing or damaged weights, modules
            that the model cannot express, an unknown device or dtype.
    """
    model = load_embedding_model(checkpoint, dtype, pool_with_dense=False if pool_with_dense is False else None)
    return model.to(pick_device(device)).eval(), load_tokenizer(checkpoint, "checkpoint")


def load_embedding_model(checkpoint: str, dtype: str | None = None, **fields: Any) -> PreTrainedModel:
    """The model of `load_embedder`, on the CPU; ``fields`` replace those of its config, None = as saved."""
    from .modeling.m2_bert import M2BertForSentenceEmbedding

    family = family_of_checkpoint(checkpoint)
    if family != "m2_bert":
        raise ValueError(f"checkpoint={checkpoint} is a {family} model; embeddings need an m2_bert encoder.")
    if fields.get("pooling") not in (None, *POOLINGS):
        raise ValueError(f"pooling must be one of {POOLINGS}, got {fields['pooling']!r}.")
    modules = read_modules(checkpoint)
    options = {} if modules is None else modules.config_fields
    options = options | {name: value for name, value in fields.items() if value is not None}
    model, missing = load_weights(M2BertForSentenceEmbedding, checkpoint, dtype, **options)
    own_dense = modules is not None and modules.dense is not None
    lost = [name for name in missing if not (own_dense and name.startswith("m2_bert.pooler."))]
    if lost and all(name.startswith("m2_bert.pooler.") for name in lost):
        raise ValueError(
            f"checkpoint={checkpoint} has no weights for the pooler, {lost[0]} first: it was not trained to embed. Pool "
            "without it by pool_with_dense=false (pooling=mean is usual then), or fine-tune it for retrieval first."
        )
    if lost:
        raise ValueError(f"checkpoint={checkpoint} is incomplete: {len(lost)} weights are missing, {lost[0]} first.")
    if own_dense and model.m2_bert.pooler.dense is not None:
        _fill_pooler(model.m2_bert.pooler.dense, modules.dense)
    return model


@dataclass
class EmbeddingModules:
    """What a sentence-transformers folder does after the encoder.

    Attributes:
        config_fields: the same, as fields of `M2BertConfig`.
        dense: weight ``(dimensions, hidden)`` and bias ``(dimensions,)`` of the tanh layer; None = there is none.
    """

    config_fields: dict[str, Any]
    dense: dict[str, Tensor] | None = None


def read_modules(checkpoint: str) -> EmbeddingModules | None:
    """The modules of a sentence-transformers folder or Hub repository; None where ``checkpoint`` is not one.

    Raises:
        ValueError: a module, a pooling or an order of them that `M2BertForSentenceEmbedding` does not have.
    """
    found = _find(checkpoint, MODULES)
    if found is None:
        return None
    content = _parsed(checkpoint, MODULES, found)
    try:
        modules = [(module["type"].rsplit(".", 1)[-1], str(module["path"])) for module in content]
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"checkpoint={checkpoint}: {MODULES} is no list of modules with type and path.") from None
    kinds = [kind for kind, _ in modules]
    orders = [["Transformer", "Pooling", *dense, *norm] for dense in ([], ["Dense"]) for norm in ([], ["Normalize"])]
    if kinds not in orders:
        raise ValueError(
            f"checkpoint={checkpoint}: {MODULES} has {' > '.join(kinds)}; an M2-BERT embedder is Transformer > Pooling > "
            "Dense > Normalize, the last two optional. Encode with sentence-transformers itself."
        )
    fields = {"normalize_embeddings": "Normalize" in kinds, "pooling": _pooling(checkpoint, modules[1][1])}
    if "Dense" not in kinds:
        return EmbeddingModules(fields | {"pool_with_dense": False, "truncate_dim": None})
    return _with_dense(checkpoint, modules[2][1], fields)


def _pooling(checkpoint, path):
    config = _read_json(checkpoint, f"{path}/config.json")
    modes = [name for name in ("cls", "mean") if config.get("pooling_mode") in (name, [name])]
    modes += [name for name in ("cls", "mean") if config.get(f"pooling_mode_{name}_token{'s' * (name == 'mean')}")]
    others = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    if len(modes) != 1 or len(others) > 1 or config.get("include_prompt") is False:
        raise ValueError(f"checkpoint={checkpoint}: {path}/config.json must pool by cls or mean alone, got {config}.")
    return modes[0]


def _with_dense(checkpoint, path, fields):
    config = _read_json(checkpoint, f"{path}/config.json")
    try:
        weights = load_file(_find(checkpoint, f"{path}/model.safetensors"))
        weight, bias = weights["linear.weight"], weights.get("linear.bias")
        dimensions, hidden = weight.shape
    except Exception as error:  # whatever safetensors makes of a file that is missing or damaged
        raise ValueError(f"checkpoint={checkpoint}: {path}/model.safetensors is no linear layer ({error}).") from error
    fields |= {"truncate_dim": dimensions if dimensions < hidden else None}
    activation = str(config.get("activation_function", "Tanh")).rsplit(".", 1)[-1]
    if activation == "Tanh" and bias is not None and dimensions <= hidden and not config.get("use_residual"):
        return EmbeddingModules(fields | {"pool_with_dense": True}, {"weight": weight, "bias": bias})
    if activation == "Identity" and bias is None and torch.equal(weight, torch.eye(dimensions, hidden)):
        return EmbeddingModules(fields | {"pool_with_dense": False})  # only cuts
    raise ValueError(
        f"checkpoint={checkpoint}: the layer in {path} ({hidden} -> {dimensions}, {activation}) is not the model's "
        "pooler, a tanh layer with bias. Encode with sentence-transformers itself."
    )


@torch.no_grad()
def _fill_pooler(dense: torch.nn.Linear, weights: dict[str, Tensor]) -> None:
    """Copies the first rows; the dimensions that are cut off afterwards stay zero."""
    for name, parameter in dense.named_parameters():
        parameter.zero_()
        parameter[: len(weights[name])] = weights[name].to(parameter.dtype)


def _read_json(checkpoint, name):
    path = _find(checkpoint, name)
    if path is None:
        raise ValueError(f"checkpoint={checkpoint} lists {name} in its {MODULES}, and it is not there.")
    content = _parsed(checkpoint, name, path)
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint={checkpoint}: {name} must hold a JSON object, got a {type(content).__name__}.")
    return content


def _parsed(checkpoint, name, path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"checkpoint={checkpoint}: {name} is not valid JSON ({error}).") from None


def _find(checkpoint: str, name: str) -> str | None:
    """The path of a file of a folder or Hub repository; None where there is none."""
    if os.path.isdir(checkpoint):
        path = os.path.join(checkpoint, name)
        return path if os.path.isfile(path) else None
    return cached_file(
        checkpoint, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
