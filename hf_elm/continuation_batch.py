"""Contexts and their continuations as one batch, padded on the left, so that all continuations end in the same column."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class ContinuationBatch:
    """Rows of context and continuation.

    Attributes:
        input_ids, attention_mask, position_ids: int64 ``(batch, seq)``; positions count from each row's first token.
        lengths: tokens of each continuation; they are the last ones of their row.
        width: longest continuation: the last ``width`` columns hold all of them.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    lengths: list[int]
    width: int

    @classmethod
    def of(cls, pairs: list[tuple[list[int], list[int]]], device: torch.device) -> ContinuationBatch:
        """The batch of (context, continuation) pairs of token ids, none of them empty."""
        rows = [torch.tensor([*context, *continuation]) for context, continuation in pairs]
        lengths = [len(continuation) for _, continuation in pairs]
        seq = max(map(len, rows))
        ids, mask = torch.zeros(len(rows), seq, dtype=torch.long), torch.zeros(len(rows), seq, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, seq - len(row) :] = row
            mask[i, seq - len(row) :] = 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return cls(ids.to(device), mask.to(device), positions.to(device), lengths, max(lengths))

    def model_inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of the model; without a mask where nothing is padding."""
        inputs = {"input_ids": self.input_ids, "position_ids": self.position_ids}
        return inputs if bool(self.attention_mask.all()) else inputs | {"attention_mask": self.attention_mask}

    def targets(self) -> Tensor:
        """The tokens of the last ``width`` columns, ``(batch, width)``."""
        return self.input_ids[:, -self.width :]

    def rows(self, values: Tensor) -> list[Tensor]:
        """``values`` of the last ``width`` columns ``(batch, width)`` as one vector per continuation, on the CPU."""
        values = values.cpu()
        return [values[i, self.width - length :].clone() for i, length in enumerate(self.lengths)]


def continuation_pieces(
    context: list[int], continuation: list[int], positions: int | None
) -> list[tuple[list[int], list[int]]]:
    """(context, continuation) pairs that fit into the model's positions and score every token of ``continuation`` once.

    One pair with the context cut from the left, where at least one token of it stays; else pieces of half the positions, each
    after as much of what stands before it as fits.

    Raises:
        ValueError: an empty context or continuation, or a model of fewer than 2 positions.
    """
    if not context or not continuation:
        raise ValueError("a continuation is scored given at least one token before it, and must have a token itself.")
    if positions is None or len(context) + len(continuation) <= positions:
        return [(context, continuation)]
    if positions < 2:
        raise ValueError(f"a token and one before it need 2 positions; the model has {positions}.")
    ids, start = [*context, *continuation], len(context)
    step = len(continuation) if len(continuation) < positions else positions // 2
    pieces = []
    while start < len(ids):
        end = min(start + step, len(ids))
        pieces.append((ids[max(0, end - positions) : start], ids[start:end]))
        start = end
    return pieces
