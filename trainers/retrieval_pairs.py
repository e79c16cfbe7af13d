"""Queries with the documents that answer them, as rows of text for training, and as collections for testing."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
from torch.utils.data import Dataset


@dataclass(frozen=True)
class RetrievalPairs(Dataset):
    """Queries with the documents that answer them; row ``i`` is a dict of ``query``, ``positives`` and ``negatives`` (texts).

    Attributes:
        queries: texts.
        documents: texts.
        positives: per query, indices of the documents that answer it.
        negatives: per query, indices of documents known not to; they come first among the row's negatives.
        negatives_per_query: a row has at most so many negatives; missing ones are drawn from the other documents.
        seed: of that drawing, which depends on nothing else but the row's number.
        query_ids, document_ids: names, where the source has them.
    """

    queries: Sequence[str]
    documents: Sequence[str]
    positives: Sequence[Sequence[int]]
    negatives: Sequence[Sequence[int]] = ()
    negatives_per_query: int = 32
    seed: int = 0
    query_ids: Sequence[str] = field(default=(), repr=False)
    document_ids: Sequence[str] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, row: int) -> dict[str, str | list[str]]:
        return {
            "query": self.queries[row],
            "positives": [self.documents[i] for i in self.positives[row]],
            "negatives": [self.documents[i] for i in self.negative_indices(row)],
        }

    def negative_indices(self, row: int) -> list[int]:
        """Documents of the row's negatives: those known, in random order, then others drawn without repetition."""
        wanted, generator = self.negatives_per_query, np.random.default_rng([self.seed, row])
        known = list(self.negatives[row]) if self.negatives else []
        chosen = [known[i] for i in generator.permutation(len(known))[:wanted]]
        taken = {*chosen, *self.positives[row]}
        room = len(self.documents) - len(taken | {*known})
        for index in _draws(generator, len(self.documents), min(wanted - len(chosen), room), taken | {*known}):
            chosen.append(index)
        return chosen

    def texts(self) -> Iterator[str]:
        """Every query and every document, to learn a tokenizer from."""
        return chain(self.queries, self.documents)

    def select(self, rows: Iterable[int], keep_documents: bool = True) -> "RetrievalPairs":
        """The given queries; with ``keep_documents=False`` only the documents that they name."""
        rows = list(rows)
        pick = lambda column: [column[row] for row in rows] if column else ()  # noqa: E731
        part = replace(
            self,
            queries=pick(self.queries),
            positives=pick(self.positives),
            negatives=pick(self.negatives),
            query_ids=pick(self.query_ids),
        )
        return part if keep_documents else part._without_unnamed_documents()

    def _without_unnamed_documents(self):
        named = sorted({i for column in (self.positives, self.negatives) for indices in column for i in indices})
        place = {index: new for new, index in enumerate(named)}
        renumbered = lambda column: [[place[i] for i in indices] for indices in column]  # noqa: E731
        return replace(
            self,
            documents=[self.documents[i] for i in named],
            document_ids=[self.document_ids[i] for i in named] if self.document_ids else (),
            positives=renumbered(self.positives),
            negatives=renumbered(self.negatives),
        )


def pairs_of_rows(rows: Iterable[Mapping], source: str = "rows") -> RetrievalPairs:
    """Pairs of dicts with ``query`` and ``positive`` or ``positives``, optionally ``negatives``; or ``query``, ``document``, ``label``.

    Equal texts are one document. Rows of one query are joined; a query without a positive keeps its negatives.

    Raises:
        ValueError: a missing column, a value of the wrong type, no row; the row's number is named.
    """
    place: dict[str, int] = {}
    positives: dict[str, dict[int, None]] = {}
    negatives: dict[str, dict[int, None]] = {}
    for number, row in enumerate(rows):
        query, good, bad = _read_row(row, number, source)
        for texts, known in ((good, positives), (bad, negatives)):
            known.setdefault(query, {}).update({place.setdefault(text, len(place)): None for text in texts})
    if not positives:
        raise ValueError(f"{source} has no rows; it needs at least one pair.")
    for query, indices in negatives.items():
        if both := indices.keys() & positives[query].keys():
            text = list(place)[min(both)]
            raise ValueError(f"{source}: {text[:60]!r} is a positive and a negative of the query {query[:60]!r}.")
    return RetrievalPairs(
        queries=list(positives),
        documents=list(place),
        positives=[list(indices) for indices in positives.values()],
        negatives=[list(negatives[query]) for query in positives],
    )


def _draws(generator, count, wanted, taken):
    """``wanted`` different numbers below ``count`` that are not ``taken``."""
    if wanted <= 0:
        return []
    if 3 * (wanted + len(taken)) > count:  # few are left: shuffle them all
        return [int(i) for i in generator.permutation(count) if int(i) not in taken][:wanted]
    found: dict[int, None] = {}
    while len(found) < wanted:
        index = int(generator.integers(count))
        if index not in taken:
            found[index] = None
    return list(found)


def _read_row(row: Mapping, number: int, source: str) -> tuple[str, list[str], list[str]]:
    """Query, positives and negatives of a row."""
    where = f"{source}, row {number}"
    query = _text(row.get("query"), f"{where}: query")
    if row.get("document") is not None:
        label = row.get("label")
        if label not in (0, 1):
            raise ValueError(f"{where}: label must be 1 (the document answers the query) or 0, got {label!r}.")
        document = [_text(row["document"], f"{where}: document")]
        return (query, document, []) if label else (query, [], document)
    given = row.get("positives") if row.get("positive") is None else row["positive"]
    positives, negatives = _texts(given, f"{where}: positive"), _texts(row.get("negatives"), f"{where}: negatives")
    if not positives:
        raise ValueError(
            f"{where} has no positive; it needs positive (or positives), or document and label. It has {sorted(row)}."
        )
    return query, positives, negatives


def _texts(value, name) -> list[str]:
    if isinstance(value, str) and value.startswith("["):  # a list in a CSV file
        try:
            value = json.loads(value)
        except ValueError:
            value = [value]
    values = [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
    return [_text(each, name) for each in values]


def _text(value, name) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be text with a visible character, got {value!r}.")
    return value
