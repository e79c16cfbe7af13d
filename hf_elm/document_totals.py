"""Totals by document, and means per token or byte with standard errors that take documents as independent."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Estimate(NamedTuple):
    """A mean and its standard error (None with fewer than two documents)."""

    value: float
    standard_error: float | None


def ratio_estimate(sums: Tensor, counts: Tensor) -> Estimate:
    """Mean per unit and its standard error, with documents as independent clusters.

        m = sum_d S_d / sum_d n_d,    SE^2 = D/(D-1) sum_d (S_d - m n_d)^2 / (sum_d n_d)^2     (Cochran 1977, sec. 2.11)

    Args:
        sums, counts: total of the quantity and number of units (tokens or bytes) of each document, ``(documents,)``.
    """
    sums, counts = sums.double(), counts.double()
    total, documents = counts.sum(), len(counts)
    mean = sums.sum() / total
    if documents < 2:
        return Estimate(mean.item(), None)
    variance = documents / (documents - 1) * (sums - mean * counts).square().sum() / total.square()
    return Estimate(mean.item(), variance.sqrt().item())


class DocumentTotals:
    """Sums of named quantities over the tokens of each document; memory grows with documents, not tokens."""

    def __init__(self):
        self.num_tokens = 0
        self._names: tuple[str, ...] = ()
        self._keys: list[Tensor] = []  # (documents, 2) per call
        self._sums: list[Tensor] = []  # (documents, 1 + names) per call; column 0 counts tokens

    def add(self, documents: Tensor, columns: dict[str, Tensor]) -> None:
        """Adds tokens: ``documents`` ``(tokens, 2)`` int64 keys, each column ``(tokens,)``; the same names every time."""
        self._names = tuple(columns)
        values = torch.stack([torch.ones(len(documents), dtype=torch.float64), *columns.values()], 1)
        self._append(documents, values)
        self.num_tokens += len(documents)

    def totals(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Tokens of each document and its sums, ``(documents,)`` each; documents met in several calls are merged."""
        keys, sums = torch.cat(self._keys), torch.cat(self._sums)
        self._keys, self._sums = [], []
        self._append(keys, sums)
        counts, *columns = self._sums[0].unbind(1)
        return counts, dict(zip(self._names, columns, strict=True))

    def _append(self, keys, values):
        unique, index = keys.unique(dim=0, return_inverse=True)
        self._keys.append(unique)
        self._sums.append(values.new_zeros(len(unique), values.shape[1]).index_add_(0, index, values))
