"""Quality of rankings, query by query: nDCG, recall, reciprocal rank.

Plain definitions, as trec_eval and BEIR use them (a document's gain is its grade, binary here). The evaluators of
sentence-transformers and scikit-learn give means alone; the spread over queries, which a standard error needs, is lost there.
"""

from collections.abc import Sequence

import numpy as np


METRICS = ("ndcg@10", "recall@10", "recall@100", "mrr")


def top_documents(scores: np.ndarray, depth: int = 100) -> np.ndarray:
    """Indices of the ``depth`` best documents, best first, ``(queries, depth)``; of equal scores the first document.

    Args:
        scores: higher is better, ``(queries, documents)``.
    """
    depth = min(depth, scores.shape[1])
    if depth < scores.shape[1]:  # all that could be among them, ties at the edge included
        edge = np.partition(scores, -depth, axis=1)[:, -depth, None]
        return np.stack([_best(row, np.flatnonzero(row >= low), depth) for row, low in zip(scores, edge, strict=True)])
    return np.argsort(-scores, axis=1, kind="stable")


def ranking_metrics(ranked: np.ndarray, relevant: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Each metric in [0, 1] of each query, name -> ``(queries,)``.

        DCG@k = sum over ranks r <= k of [document r is relevant] / log2(r + 1);   nDCG@k = DCG@k / the best possible DCG@k
        recall@k = relevant documents among the first k / relevant documents;     mrr = 1 / rank of the first one found, or 0

    Args:
        ranked: document indices, best first, ``(queries, depth)``.
        relevant: indices of the relevant documents of each query, at least one.
    """
    hits = np.stack([np.isin(row, list(good)) for row, good in zip(ranked, relevant, strict=True)])
    counts = np.array([len(set(good)) for good in relevant])
    discounts = 1 / np.log2(np.arange(2, max(ranked.shape[1], 10) + 2))
    best = np.cumsum(discounts)[np.minimum(counts, 10) - 1]
    found = hits.any(axis=1)
    metrics = {"ndcg@10": hits[:, :10] @ discounts[: min(10, ranked.shape[1])] / best}
    metrics |= {f"recall@{k}": hits[:, :k].sum(axis=1) / counts for k in (10, 100)}
    return metrics | {"mrr": np.where(found, 1 / (hits.argmax(axis=1) + 1), 0.0)}


def _best(row: np.ndarray, candidates: np.ndarray, depth: int) -> np.ndarray:
    return candidates[np.argsort(-row[candidates], kind="stable")][:depth]
