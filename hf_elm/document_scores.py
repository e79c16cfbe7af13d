"""Log-likelihoods of whole documents, each by itself, through windows of a model's positions."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .continuation_scores import ContinuationScorer, Pair
from .counted_bytes import TokenBytes
from .document_totals import DocumentTotals
from .evaluation_rows import RowBatch, leave_out_unknown, unknown_token_id
from .token_log_probs import vocabulary_size


class DocumentScores:
    """Totals by document of one model.

    Attributes:
        counts: counted tokens of each document, ``(documents,)``.
        num_bytes: of the text of those tokens, ``(documents,)``.
        nll: column -> summed negative log-likelihood, nats, ``(documents,)``.
        num_unknown: tokens left out, which stand for text that the tokenizer does not know.
    """

    def __init__(self, counts: Tensor, num_bytes: Tensor, nll: dict[str, Tensor], num_unknown: int):
        self.counts, self.num_bytes, self.nll, self.num_unknown = counts, num_bytes, nll, num_unknown


def score_documents(
    scorer: ContinuationScorer, tokenizer, texts: Iterable[str], window: int | None = None, progress: bool = True
) -> DocumentScores:
    """Scores every token of each text but its first, which has nothing before it, and those of unknown text.

    A text longer than ``window`` is read in windows that overlap by half, so that every token but those of the first window has
    at least half a window before it.

    Raises:
        ValueError: a text of fewer than two known tokens; a window out of range.
    """
    if scorer.positions is not None and (window is None or window > scorer.positions):
        window = scorer.positions
    if window is not None and window < 2:
        raise ValueError(f"window must be at least 2 tokens, got {window}.")
    documents = [tokenizer(text, verbose=False)["input_ids"] for text in texts]
    documents = [ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids for ids in documents]
    pairs = [(number, pair) for number, ids in enumerate(documents) for pair in windows(ids, window)]
    pairs.sort(key=lambda item: len(item[1][0]) + len(item[1][1]), reverse=True)
    scores = scorer.scores(pair for _, pair in pairs)
    totals, unknown_id, unknown = DocumentTotals(), unknown_token_id(tokenizer), 0
    token_bytes = TokenBytes.of(tokenizer, None, vocabulary_size(scorer.model))
    bar = tqdm(scores, total=len(pairs), desc="documents", unit="window", disable=not progress, delay=1.0)
    for (number, (context, continuation)), score in zip(pairs, bar, strict=True):
        batch = _row(number, [*context, *continuation], len(context))
        unknown += leave_out_unknown(batch, unknown_id)
        counted = batch.counted[0, len(context) :]
        columns = {name: -values[counted] for name, values in score.log_probs.items()}
        totals.add(batch.documents[batch.counted], columns | {"bytes": token_bytes(batch)})
    counts, sums = totals.totals()
    if len(counts) < len(documents) or (counts == 0).any():
        raise ValueError(
            "a document has fewer than two tokens that the tokenizer knows; leave it out, or take longer ones."
        )
    return DocumentScores(counts, sums.pop("bytes"), sums, unknown)


def windows(ids: list[int], window: int | None) -> list[Pair]:
    """(context, continuation) pairs that score each token but the first once."""
    if window is None or len(ids) <= window:
        return [(ids[:1], ids[1:])] if len(ids) > 1 else []
    pairs, step = [(ids[:1], ids[1:window])], max(1, window // 2)
    for start in range(window, len(ids), step):
        end = min(start + step, len(ids))
        pairs.append((ids[end - window : start], ids[start:end]))
    return pairs


def _row(number: int, ids: list[int], context: int) -> RowBatch:
    row = torch.tensor([ids])
    counted = torch.zeros_like(row, dtype=torch.bool)
    counted[:, context:] = True
    documents = torch.tensor([-1, number]).expand(1, len(ids), 2)
    return RowBatch(row, None, None, None, counted, documents, first_row=number)
