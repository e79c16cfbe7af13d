"""Which tokens see which tokens, and which memories: padding, packed documents and caches turned into masks."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class AttentionLayout:
    """Masks of one batch; ``seq`` are the tokens of this call, ``keys`` these and the cached ones before them.

    Attributes:
        position_ids: ``(batch or 1, seq)``.
        mask: True = visible, boolean ``(batch or 1, 1, seq, keys)``; None = everything, or plain causal. Every token sees itself.
        is_causal: plain causal attention over seq = keys tokens.
        memory_mask: True = the query may read slot j of the associative memory (see `FreeEnergyField`), of the shape of
            ``mask``; None with it. Slot 0 is visible to all.
        num_keys: keys.
    """

    position_ids: Tensor
    mask: Tensor | None
    is_causal: bool
    memory_mask: Tensor | None
    num_keys: int

    def memory_queries(self, kept: slice | Tensor) -> tuple[Tensor | None, bool]:
        """(mask, is_causal) of the memory for the query positions ``kept`` alone."""
        if self.memory_mask is not None:
            return self.memory_mask[:, :, kept], False
        seq = self.position_ids.shape[1]
        if not self.is_causal or kept == slice(None):
            return None, self.is_causal
        if kept == slice(-1, None):
            return None, False
        device = self.position_ids.device
        return torch.ones(seq, self.num_keys, dtype=torch.bool, device=device).tril()[None, None, kept], False


def attention_layout(
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    segment_ids: Tensor | None = None,
    past: int = 0,
) -> AttentionLayout:
    """Builds the `AttentionLayout` of a batch.

    Args:
        input_ids: ``(batch, seq)``.
        attention_mask: 1 = token, 0 = padding on either side, ``(batch, past + seq)``; without a cache None = no padding but
            where ``segment_ids`` is -1.
        position_ids: ``(batch, seq)``; None = counted over the tokens that are no padding.
        segment_ids: document of each token within its row, -1 = padding, ``(batch, seq)``; no cached tokens then.
        past: cached tokens.

    Raises:
        ValueError: a tensor of another shape, segments together with a cache.
    """
    batch, seq = input_ids.shape
    keys = past + seq
    _check_shapes(attention_mask, position_ids, segment_ids, batch, seq, past)
    if segment_ids is not None and _all_true(segment_ids == segment_ids[:, :1].clamp(min=0)):
        segment_ids = None  # one document per row
    if segment_ids is not None:
        token = segment_ids >= 0
        attention_mask = token if attention_mask is None else token & attention_mask.bool()
    if attention_mask is not None and _all_true(attention_mask):
        attention_mask = None
    if position_ids is None:
        position_ids = _positions(attention_mask, past, keys, input_ids.device)
    if attention_mask is None and segment_ids is None and (past == 0 or seq == 1):
        return AttentionLayout(position_ids, None, past == 0 and seq > 1, None, keys)
    causal = torch.ones(seq, keys, dtype=torch.bool, device=input_ids.device).tril(past)
    mask, readable = causal[None, None], causal[None, None]
    if attention_mask is not None:
        token = attention_mask.bool()
        mask = mask & token[:, None, None, :]
        readable = readable & (token & F.pad(token[:, :-1], (1, 0)))[:, None, None, :]
    if segment_ids is not None:
        same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
        inside = F.pad(segment_ids[:, 1:] == segment_ids[:, :-1], (1, 0))
        mask, readable = mask & same, readable & same & inside[:, None, None, :]
    mask = mask | torch.eye(keys, dtype=torch.bool, device=mask.device)[past:]
    sink = torch.arange(keys, device=mask.device) == 0
    return AttentionLayout(position_ids, mask, False, readable | sink, keys)


def _all_true(mask):
    """Whether nothing is masked; never asked on XLA, where the answer would stop the trace."""
    return mask.device.type not in ("xla", "meta") and not torch.compiler.is_compiling() and bool(mask.all())


def _positions(attention_mask, past, keys, device):
    if attention_mask is None:
        return torch.arange(past, keys, device=device).unsqueeze(0)
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, past:]


def _check_shapes(attention_mask, position_ids, segment_ids, batch, seq, past):
    wanted = {
        "attention_mask": (attention_mask, {(batch, past + seq)}),
        "position_ids": (position_ids, {(batch, seq), (1, seq)}),
        "segment_ids": (segment_ids, {(batch, seq)}),
    }
    for name, (tensor, shapes) in wanted.items():
        if tensor is not None and tuple(tensor.shape) not in shapes:
            raise ValueError(
                f"{name} must be of shape {' or '.join(map(str, sorted(shapes)))}, got {tuple(tensor.shape)}."
            )
    if segment_ids is not None and past:
        raise ValueError(f"segment_ids go with whole rows, got a cache of {past} tokens; leave one of them out.")
