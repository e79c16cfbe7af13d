"""Targets of next-token prediction and their negative log-likelihood, as sums over counted tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor


def next_token_targets(
    labels: Tensor, attention_mask: Tensor | None = None, segment_ids: Tensor | None = None
) -> Tensor:
    """What each position predicts, ``(batch, seq)``; -100 = not counted: the last position, padding, across documents.

    Args:
        labels: aligned with the tokens, -100 where a token is not counted, ``(batch, seq)``.
        attention_mask, segment_ids: as the model takes them, ``(batch, seq)``.
    """
    targets = F.pad(labels[:, 1:], (0, 1), value=-100)
    ignored = torch.zeros_like(targets, dtype=torch.bool)
    if segment_ids is not None:
        ignored |= (segment_ids < 0) | F.pad(segment_ids[:, 1:] != segment_ids[:, :-1], (0, 1), value=True)
    if attention_mask is not None:
        token = attention_mask[:, -labels.shape[1] :].bool()
        ignored |= ~(token & F.pad(token[:, 1:], (0, 1)))
    return targets.masked_fill(ignored, -100)


def mean_nll(logits: Tensor, targets: Tensor, num_items: Tensor | int) -> Tensor:
    """Sum of -log softmax(logits)[target] over the counted targets / ``num_items``, nats/token.

    Args:
        logits: ``(batch, seq, vocab)``.
        targets: ``(batch, seq)``; -100 = not counted.
    """
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100) / num_items


def masked_mean(values: Tensor, counted: Tensor, num_items: Tensor | int) -> Tensor:
    """Sum of ``values`` at the counted positions / ``num_items``; both ``(batch, seq)``."""
    return values.masked_fill(~counted, 0.0).sum() / num_items
