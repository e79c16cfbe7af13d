"""Log-likelihoods of whole documents, each by itself, through windows of a model's positions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .continuation_scores import ContinuationScorer, Pair
from .counted_bytes import TokenBytes
from .evaluation_rows import RowBatch, leave_out_unknown, unknown_token_id
from .token_log_probs import vocabulary_size


PART_TOKENS = 1 << 14  # of which everything is held at once where only totals are wanted


@dataclass
class DocumentScore:
    """One document of n tokens.

    Attributes:
        token_ids: its tokens.
        counted: bool ``(n,)``; not the first, which has nothing before it, nor those of text that the tokenizer does not know.
        num_bytes: UTF-8 bytes that the counted tokens stand for.
        num_unknown: tokens left out as unknown.
        log_probs: column -> float64 ``(n,)``, nats; 0 where not counted.
        energies: of a MonArc model, float64 ``(n,)``, nats, 0 where not counted; else None.
    """

    token_ids: list[int]
    counted: Tensor
    num_bytes: int
    num_unknown: int
    log_probs: dict[str, Tensor]
    energies: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Counted tokens."""
        return int(self.counted.sum())

    def log_prob(self, column: str) -> float:
        """Sum over the counted tokens, nats."""
        return self.log_probs[column].sum().item()


class DocumentScorer:
    """Scores every token of each document but the first, which has nothing before it, and those of unknown text.

    A document longer than ``window`` is read in windows that overlap by half, so that every token but those of the first window
    has at least half a window before it.

    Args:
        scorer: of the model, see `hf_elm.continuation_scores.scorer_of`.
        window: tokens that the model sees at once; None, or more than its positions: those.

    Raises:
        ValueError: a window of fewer than 2 tokens.
    """

    def __init__(self, scorer: ContinuationScorer, tokenizer, window: int | None = None):
        if scorer.positions is not None and (window is None or window > scorer.positions):
            window = scorer.positions
        if window is not None and window < 2:
            raise ValueError(f"window must be at least 2 tokens, got {window}.")
        self.scorer, self.tokenizer, self.window = scorer, tokenizer, window
        self._unknown_id = unknown_token_id(tokenizer)
        self._token_bytes = TokenBytes.of(tokenizer, None, vocabulary_size(scorer.model))

    def token_ids(self, text: str) -> list[int]:
        """The tokens of a document, without the end-of-text token that some tokenizers add."""
        ids = self.tokenizer(text, verbose=False)["input_ids"]
        return ids[:-1] if ids[-1:] == [self.tokenizer.eos_token_id] else ids

    def scores(
        self, documents: list[list[int]], advance: Callable[[int, int], object] = lambda document, tokens: None
    ) -> list[DocumentScore]:
        """Scores of documents given as token ids, in order; a document gets the same ones whatever stands beside it, to rounding.

        Args:
            advance: called with the number of a document and of its tokens that have just been scored.
        """
        found = [self._unscored(number, ids) for number, ids in enumerate(documents)]
        places = [place for number, ids in enumerate(documents) for place in self._places(number, ids)]
        places.sort(key=lambda place: len(place[2][0]) + len(place[2][1]), reverse=True)
        scores = self.scorer.scores(pair for _, _, pair in places)
        for (number, start, (_, continuation)), score in zip(places, scores, strict=True):
            document, part = found[number], slice(start, start + len(continuation))
            counted = document.counted[part]
            for name, values in score.log_probs.items():
                whole = document.log_probs.setdefault(name, torch.zeros(len(documents[number]), dtype=torch.float64))
                whole[part] = values.where(counted, 0.0)
            if score.energies is not None:
                if document.energies is None:
                    document.energies = torch.zeros(len(documents[number]), dtype=torch.float64)
                document.energies[part] = score.energies.where(counted, 0.0)
            advance(number, len(continuation))
        return found

    def _places(self, number: int, ids: list[int]) -> Iterator[tuple[int, int, Pair]]:
        """(document, place of the first scored token, (context, continuation)) of every window."""
        start = 1
        for pair in windows(ids, self.window):
            yield number, start, pair
            start += len(pair[1])

    def _unscored(self, number: int, ids: list[int]) -> DocumentScore:
        counted = torch.zeros(len(ids), dtype=torch.bool)
        if len(ids) < 2:
            return DocumentScore(ids, counted, 0, 0, {})
        row = _row(number, ids)
        unknown = leave_out_unknown(row, self._unknown_id)
        num_bytes = round(self._token_bytes(row).sum().item())
        return DocumentScore(ids, row.counted[0], num_bytes, unknown, {})


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
    """Totals of every text as `DocumentScorer` scores it.

    Raises:
        ValueError: a text of fewer than two known tokens; a window out of range.
    """
    documents = DocumentScorer(scorer, tokenizer, window)
    ids = [documents.token_ids(text) for text in texts]
    found, unknown = [], 0
    total = sum(max(len(each) - 1, 0) for each in ids)
    with tqdm(total=total, desc="log-likelihoods", unit="token", disable=not progress, delay=1.0) as bar:
        for part in parts([len(each) for each in ids], PART_TOKENS):
            for score in documents.scores(ids[part], lambda _, tokens: bar.update(tokens)):
                totals = {name: -values.sum() for name, values in score.log_probs.items()}
                found.append((score.num_tokens, score.num_bytes, totals))
                unknown += score.num_unknown
    counts = torch.tensor([count for count, _, _ in found], dtype=torch.float64)
    if not len(counts) or (counts == 0).any():
        raise ValueError(
            "a document has fewer than two tokens that the tokenizer knows; leave it out, or take longer ones."
        )
    nll = {name: torch.stack([totals[name] for _, _, totals in found]) for name in found[0][2]}
    return DocumentScores(counts, torch.tensor([size for _, size, _ in found], dtype=torch.float64), nll, unknown)


def parts(lengths: list[int], budget: int, start: int = 0) -> Iterator[slice]:
    """Runs of documents of about ``budget`` tokens each, from ``start``; from an end of one on, the next ones are the same."""
    first, room = start, budget
    for i in range(start, len(lengths)):
        room -= lengths[i]
        if room <= 0:
            yield slice(first, i + 1)
            first, room = i + 1, budget
    if first < len(lengths):
        yield slice(first, len(lengths))


def windows(ids: list[int], window: int | None) -> list[Pair]:
    """(context, continuation) pairs that score each token but the first once."""
    if window is None or len(ids) <= window:
        return [(ids[:1], ids[1:])] if len(ids) > 1 else []
    pairs, step = [(ids[:1], ids[1:window])], max(1, window // 2)
    for start in range(window, len(ids), step):
        end = min(start + step, len(ids))
        pairs.append((ids[end - window : start], ids[start:end]))
    return pairs


def _row(number: int, ids: list[int]) -> RowBatch:
    """All tokens of a document but the first as counted ones."""
    row = torch.tensor([ids])
    counted = torch.ones_like(row, dtype=torch.bool)
    counted[:, 0] = False
    documents = torch.tensor([-1, number]).expand(1, len(ids), 2)
    return RowBatch(row, None, None, None, counted, documents, first_row=number)
