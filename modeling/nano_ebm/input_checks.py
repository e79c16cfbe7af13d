"""Refuses rows that cannot be predicted, before any work."""

import torch
from torch import Tensor

from .attention_layout import AttentionLayout


def check_inputs(
    model, input_ids: Tensor | None, labels: Tensor | None = None, logits_to_keep: int | Tensor = 0, topk: int = 0
) -> None:
    """Values are looked at on the CPU only: elsewhere that would wait for the device.

    Raises:
        TypeError: missing or non-integer ``input_ids``.
        ValueError: labels of another shape, labels beside options that leave no likelihood, a token outside the
            vocabulary.
    """
    if input_ids is None or input_ids.ndim != 2 or input_ids.is_floating_point():
        got = "None" if input_ids is None else f"{input_ids.dtype} {tuple(input_ids.shape)}"
        raise TypeError(f"input_ids must be an integer tensor (batch, seq), got {got}.")
    if labels is not None:
        _check_labels(input_ids, labels, logits_to_keep, topk)
    if input_ids.device.type != "cpu" or torch.compiler.is_compiling():
        return
    vocabulary = model.get_input_embeddings().weight.shape[0]
    for name, ids in (("input_ids", input_ids), ("labels", labels)):
        if ids is None:
            continue
        ids = ids[ids != -100] if name == "labels" else ids
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
            raise ValueError(
                f"{name} must be in [0, {vocabulary}), the vocabulary, got {int(ids.min())} to {int(ids.max())}."
            )


def check_positions(layout: AttentionLayout, positions: int | None) -> None:
    """Refuses tokens beyond the table of positions; a row may be longer than it by padding.

    Raises:
        ValueError: as said.
    """
    if positions is None or layout.num_keys <= positions:
        return
    if layout.mask is None:
        length = layout.num_keys
    elif layout.position_ids.device.type == "cpu":
        length = int(layout.position_ids.max()) + 1
    else:  # counting would wait for the device
        return
    if length > positions:
        raise ValueError(
            f"a row of {length} tokens exceeds the model's {positions} positions; cut it, or train a model with a larger "
            'max_position_embeddings or position_type="rope".'
        )


def _check_labels(input_ids, labels, logits_to_keep, topk):
    if labels.shape != input_ids.shape:
        raise ValueError(
            f"labels must have the shape of input_ids {tuple(input_ids.shape)}, got {tuple(labels.shape)}."
        )
    if isinstance(logits_to_keep, Tensor) or logits_to_keep:
        raise ValueError("logits_to_keep leaves positions out, labels need all of them; pass one of the two.")
    if topk:
        raise ValueError(
            f"think_topk={topk} gives the other tokens probability 0, and labels an infinite loss; pass think_topk=0 with labels."
        )
