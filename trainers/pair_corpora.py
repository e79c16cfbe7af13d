"""Pairs of queries and documents, split into train and held-out: the standard library, tables, BEIR folders."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
from datasets import Dataset

from .beir_folders import beir_splits, read_beir
from .corpus_sources import file_kind, open_table, refuse_missing_path, require_column
from .library_functions import described_functions
from .retrieval_pairs import RetrievalPairs, pairs_of_rows


HELD_OUT_QRELS = ("dev", "validation", "test")


@dataclass(frozen=True)
class PairCorpus:
    """Pairs to learn from and pairs held out, under the ``name`` of their source."""

    name: str
    train: RetrievalPairs
    held_out: RetrievalPairs


def load_pairs(
    source: str | os.PathLike = "stdlib",
    *,
    held_out_fraction: float = 0.1,
    negatives_per_query: int = 32,
    max_pairs: int | None = None,
    seed: int = 0,
) -> PairCorpus:
    """Pairs of ``source``, split into train and held-out.

    =====================  ==========================================================  ===============================
    source                 pair                                                        held out
    =====================  ==========================================================  ===============================
    ``"stdlib"``           documentation string and code of a function of the          by file
                           interpreter's own library
    table file             row with ``query`` and ``positive`` (or ``positives``),     by query
    (jsonl, csv, parquet)  optionally ``negatives``; or with ``query``, ``document``
                           and ``label``
    BEIR folder            ``qrels/train.tsv`` over ``corpus.jsonl``,                  ``qrels/dev.tsv`` or
                           ``queries.jsonl``                                           ``test.tsv``, else by query
    =====================  ==========================================================  ===============================

    Args:
        held_out_fraction: share to hold out, strictly between 0 and 1; decided by a hash of the name or text.
        negatives_per_query: see `RetrievalPairs`.
        max_pairs: at most so many queries of the train part, chosen by ``seed``; the held-out part has at most as many.
        seed: of the split, of ``max_pairs`` and of the negatives.

    Raises:
        FileNotFoundError: no such file or folder, or a file missing in it.
        ValueError: an argument out of range, columns or ids that do not fit, a part without pairs.
    """
    if not 0 < held_out_fraction < 1:
        raise ValueError(f"held_out_fraction must lie strictly between 0 and 1, got {held_out_fraction!r}; try 0.1.")
    if negatives_per_query < 0:
        raise ValueError(f"negatives_per_query must be 0 or more, got {negatives_per_query!r}.")
    if max_pairs is not None and max_pairs < 1:
        raise ValueError(f"max_pairs must be positive, got {max_pairs!r}; leave it out for all.")
    source = os.path.expanduser(os.fspath(source))
    if source == "stdlib":
        train, held_out = _split(*stdlib_pairs(), held_out_fraction, seed, keep_documents=False)
    elif os.path.isdir(source):
        train, held_out = _beir_parts(source, held_out_fraction, seed)
    elif os.path.isfile(source):
        pairs = pairs_of_rows(_read_table(source), source)
        train, held_out = _split(pairs, pairs.queries, held_out_fraction, seed, keep_documents=False)
    else:
        refuse_missing_path(source)
        raise FileNotFoundError(f"pairs={source!r} is neither 'stdlib' nor a file or a folder of BEIR's layout.")
    parts = [replace(part, negatives_per_query=negatives_per_query, seed=seed) for part in (train, held_out)]
    for name, part in zip(("train", "held-out"), parts, strict=True):
        if not len(part):
            raise ValueError(f"pairs={source!r} has no {name} pairs; give more pairs or another held_out_fraction.")
    return PairCorpus(source, *(_at_most(part, max_pairs, seed) for part in parts))


def stdlib_pairs() -> tuple[RetrievalPairs, list[str]]:
    """Documentation (query) and code (document) of the functions of the interpreter's own library; and the file of each."""
    found = described_functions()
    pairs = RetrievalPairs(
        queries=[each.description for each in found],
        documents=[each.code for each in found],
        positives=[[index] for index in range(len(found))],
        query_ids=[each.name for each in found],
        document_ids=[each.name for each in found],
    )
    return pairs, [each.file for each in found]


def _beir_parts(folder, fraction, seed):
    train, splits = read_beir(folder, "train"), beir_splits(folder)
    other = next((split for split in HELD_OUT_QRELS if split in splits), None)
    if other is None:
        return _split(train, train.query_ids, fraction, seed, keep_documents=True)
    return train, read_beir(folder, other)


def _split(pairs, keys, fraction, seed, keep_documents):
    """Train and held-out part; rows of equal key stay together, and a key stays on its side when others come."""
    share = np.array([_uniform(f"split/{seed}/{key}") for key in keys])
    held = share < fraction
    if not held.any() and len(share):
        held = share == share.min()
    if held.all():
        held = share < share.max()
    return tuple(pairs.select(np.flatnonzero(mask), keep_documents) for mask in (~held, held))


def _at_most(pairs, count, seed):
    if count is None or len(pairs) <= count:
        return pairs
    order = sorted(range(len(pairs)), key=lambda row: _uniform(f"choice/{seed}/{pairs.queries[row]}"))
    return pairs.select(sorted(order[:count]))


def _uniform(key: str) -> float:
    """A number in [0, 1) that depends on ``key`` alone, the same on every machine."""
    return (int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") >> 11) / 2**53


def _read_table(path: str) -> Iterator[dict]:
    kind = file_kind(path)
    if kind == "text":
        raise ValueError(
            f"pairs={path!r} must be a jsonl, json, csv, tsv or parquet file, or a folder of BEIR's layout."
        )
    table = open_table(kind, path)
    require_column(table, "query", f"the column query of pairs={path!r}")
    return _rows(table, path)


def _rows(table: Dataset, path: str) -> Iterator[dict]:
    """The rows, or a ValueError that names the file where `datasets` cannot give one as Python values."""
    rows = iter(table)
    for number in range(len(table)):
        try:
            row = next(rows)
        except Exception as error:
            raise ValueError(f"{path}, row {number} cannot be read: {' '.join(str(error).split())[:300]}") from error
        yield row
