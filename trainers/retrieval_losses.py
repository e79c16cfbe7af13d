"""Losses of embedding models on the cosines of queries and documents: orthogonal projection and InfoNCE.

Every function takes ``cosines`` ``(queries, documents)`` and ``labels`` of that shape: 1 = the document answers the query,
0 = it does not, -100 = the two are no pair. Each returns sums, to be divided by the pairs of a whole optimizer step.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


POSITIVE, NEGATIVE, NO_PAIR = 1, 0, -100


def pair_counts(labels: Tensor) -> Tensor:
    """Number of positive and of negative pairs, ``(2,)``."""
    return torch.stack([(labels == POSITIVE).sum(), (labels == NEGATIVE).sum()])


def cosine_matrices(queries: Tensor, documents: Tensor, dimensions: Sequence[int] | None = None) -> list[Tensor]:
    """Cosines ``(queries, documents)`` of embeddings cut to each of ``dimensions`` (None: whole), in at least float32.

    Cutting and normalising again is how a Matryoshka embedding is used (Kusupati et al. 2022).

    Args:
        queries: ``(queries, hidden)``; their length does not matter.
        documents: ``(documents, hidden)``.
    """
    dtype = torch.promote_types(queries.dtype, torch.float32)
    queries, documents = queries.to(dtype), documents.to(dtype)
    cut = dimensions or [queries.shape[-1]]
    return [F.normalize(queries[:, :d], dim=-1) @ F.normalize(documents[:, :d], dim=-1).T for d in cut]


def orthogonal_projection_sums(cosines: Tensor, labels: Tensor, absolute: bool = False) -> tuple[Tensor, Tensor]:
    """The two sums of the orthogonal projection loss, over positive and over negative pairs.

        L = mean over positives of (1 - cos)^2 + mean over negatives of cos^2              (``absolute=False``)
        L = mean over positives of (1 - cos)   + mean over negatives of |cos|              (Ranasinghe et al. 2021, eq. 5)

    It is the first that the M2-BERT retrieval models are described with. Each pair has a term of its own, so no batch has to be
    large and nothing but one pair has to be in memory.
    """
    positive, negative = labels == POSITIVE, labels == NEGATIVE
    apart, along = 1 - cosines[positive], cosines[negative]
    if absolute:
        return apart.sum(), along.abs().sum()
    return apart.square().sum(), along.square().sum()


def info_nce_sum(cosines: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Sum over positive pairs of -log softmax(scale cos), nats; each against the negatives of its query.

        L(q, d) = -log [ e^{s cos(q, d)} / (e^{s cos(q, d)} + sum over negatives n of q of e^{s cos(q, n)}) ]

    (van den Oord et al. 2018; "multiple negatives ranking".) Other positives of the query are left out of the sum.
    """
    logits = scale * cosines
    against = logits.masked_fill(labels != NEGATIVE, float("-inf"))
    rows, columns = torch.nonzero(labels == POSITIVE, as_tuple=True)
    positive = logits[rows, columns]
    return (torch.logsumexp(torch.cat([positive[:, None], against[rows]], dim=1), dim=1) - positive).sum()
