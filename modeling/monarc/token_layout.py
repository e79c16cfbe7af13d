"""Which tokens see which, and which are counted: padding and packed documents turned into masks."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class TokenLayout:
    """Masks of one batch.

    Attributes:
        position_ids: ``(batch or 1, seq)``.
        mask: the true stream's attention, boolean, True = visible, ``(batch, 1, seq, seq)``; None = plain causal. Every token
            sees itself, padding too, so that no softmax runs over nothing.
        prefix_mask: the same without the diagonal: the true keys that a candidate sees; None with ``mask``.
        scored: tokens that have an energy: not padding, not at position 0, and (unless segment starts are counted) not the
            first of their document, boolean ``(batch, seq)``.
    """

    position_ids: Tensor
    mask: Tensor | None
    prefix_mask: Tensor | None
    scored: Tensor


def token_layout(
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    segment_ids: Tensor | None = None,
    mask_segment_starts: bool = True,
) -> TokenLayout:
    """Builds the `TokenLayout` of a batch.

    Args:
        input_ids: ``(batch, seq)``.
        attention_mask: 1 = token, 0 = padding on either side, ``(batch, seq)``; None = no padding but where ``segment_ids`` is -1.
        position_ids: ``(batch, seq)`` or None = counted over the tokens that are no padding.
        segment_ids: document of each token within its row, -1 = padding, ``(batch, seq)``; None = one document per row.

    Raises:
        ValueError: a mask or id tensor has another shape than ``input_ids``.
    """
    named = {"attention_mask": attention_mask, "segment_ids": segment_ids}
    for name, tensor in named.items():
        if tensor is not None and tensor.shape != input_ids.shape:
            raise ValueError(
                f"{name} must have the shape of input_ids {tuple(input_ids.shape)}, got {tuple(tensor.shape)}; "
                "4-D masks are built from it, do not pass one."
            )
    if segment_ids is not None:
        token = segment_ids >= 0
        attention_mask = token if attention_mask is None else token & attention_mask.bool()
    if attention_mask is not None and _all_true(attention_mask):
        attention_mask = None
    seq, device = input_ids.shape[1], input_ids.device
    if position_ids is None:
        position_ids = _positions(attention_mask, seq, device)
    scored = torch.ones_like(input_ids, dtype=torch.bool)
    scored[:, :1] = False
    if attention_mask is None and segment_ids is None:
        return TokenLayout(position_ids, None, None, scored)
    prefix = torch.ones(seq, seq, dtype=torch.bool, device=device).tril(-1)[None, None]
    if attention_mask is not None:
        token = attention_mask.bool()
        prefix = prefix & token[:, None, None, :]
        scored = scored & token
        scored[:, 1:] &= token[:, :-1]
    if segment_ids is not None:
        prefix = prefix & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
        if mask_segment_starts:
            scored[:, 1:] &= segment_ids[:, 1:] == segment_ids[:, :-1]
    return TokenLayout(position_ids, prefix | torch.eye(seq, dtype=torch.bool, device=device), prefix, scored)


def _all_true(mask):
    """Whether nothing is padding; never asked on XLA, where the answer would stop the trace."""
    return mask.device.type not in ("xla", "meta") and not torch.compiler.is_compiling() and bool(mask.all())


def _positions(attention_mask, seq, device):
    if attention_mask is None:
        return torch.arange(seq, device=device).unsqueeze(0)
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def check_inputs(input_ids, labels=None, negatives=None, vocab_size=0, name="negatives"):
    """Refuses rows that cannot be scored, before any work.

    Values are looked at on the CPU only: elsewhere that would wait for the device.

    Raises:
        TypeError: missing or non-integer ``input_ids``; ``negatives`` that are no integers.
        ValueError: a wrong shape, a token outside the vocabulary, labels that are neither -100 nor the input's token.
    """
    if input_ids is None or input_ids.ndim != 2 or input_ids.is_floating_point():
        got = "None" if input_ids is None else f"{input_ids.dtype} {tuple(input_ids.shape)}"
        raise TypeError(f"input_ids must be an integer tensor (batch, seq) to score tokens, got {got}.")
    if labels is not None and labels.shape != input_ids.shape:
        raise ValueError(
            f"labels must have the shape of input_ids {tuple(input_ids.shape)}, got {tuple(labels.shape)}."
        )
    if negatives is not None:
        if negatives.dtype != torch.int64:
            raise TypeError(
                f"{name} must be token ids of dtype torch.int64, got {negatives.dtype}; convert with .long()."
            )
        batch, seq = input_ids.shape
        if negatives.ndim != 3 or negatives.shape[0] != batch or negatives.shape[2] != seq or not negatives.shape[1]:
            raise ValueError(
                f"{name} must be of shape (batch, K, seq) = ({batch}, K >= 1, {seq}), got {tuple(negatives.shape)}."
            )
    if input_ids.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if labels is not None and bool(((labels != -100) & (labels != input_ids)).any()):
        raise ValueError(
            "labels must equal input_ids, or be -100 where a token is not counted; the shift happens inside the model."
        )
    for label, ids in (("input_ids", input_ids), (name, negatives)):
        if ids is not None and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
            raise ValueError(
                f"{label} must be in [0, {vocab_size}), the vocabulary, got {int(ids.min())} to {int(ids.max())}."
            )
