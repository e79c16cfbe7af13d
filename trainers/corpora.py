"""Text corpora as `datasets`, split into train and held-out without leakage.

A corpus comes from the interpreter's own library (``"stdlib"``: real text on every machine, nothing to download), a
file, a folder or glob, or a dataset of the Hub. Which document is held out depends on a hash of its name or text, never
on its place, so a corpus that grows keeps its split.
"""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

import numpy as np
from datasets import Dataset, IterableDataset, load_from_disk

from .corpus_sources import (
    file_kind,
    hub_splits,
    is_visible,
    local_files,
    read_files,
    refuse_missing_path,
    standard_library,
    text_only,
)


STREAM_HELD_OUT = 1000  # documents held out of a stream that has no such split, at most
HELD_OUT_SPLITS = ("validation", "valid", "dev", "test", "held_out")


@dataclass(frozen=True)
class Corpus:
    """Documents to learn from and documents held out, each row a document in column ``text``.

    Attributes:
        name: where the text comes from, for logs and model cards.
        train, held_out: `datasets.Dataset`, or `datasets.IterableDataset` for a stream. Column ``source`` names the
            file of each document where the corpus is made of files.
    """

    name: str
    train: Dataset | IterableDataset
    held_out: Dataset | IterableDataset


def load_corpus(
    source: str | os.PathLike = "stdlib",
    *,
    held_out_fraction: float = 0.05,
    seed: int = 0,
    max_bytes: int | None = None,
    text_column: str = "text",
    config_name: str | None = None,
    split: str = "train",
    streaming: bool = True,
) -> Corpus:
    """Documents of ``source``, split into train and held-out.

    ======================  =============================================  ============================================
    source                  document                                       held out
    ======================  =============================================  ============================================
    ``"stdlib"``            module of the library, topic of its manual     by file name
    text file               what stands between ``<|endoftext|>`` marks;   the final share, contiguous
                            without marks, blocks of about 8192
                            characters, cut at blank lines
    table file              row (jsonl, json, csv, tsv, parquet, arrow;    by text: copies of a document stay together
                            also compressed)
    folder, glob            text file, or row of a table                   by file name; where all names tell their
                                                                           split (train.txt, test.txt), by that
    ``save_to_disk`` folder  row                                           its own validation or test split, or by text
    ``hf-elm prepare``       packed row                                    as it was prepared
    Hub dataset id          row                                            likewise; or the first documents of a stream
    ======================  =============================================  ============================================

    "By" name or text: held out where hash(seed, name or text), uniform in [0, 1), is below ``held_out_fraction``; a
    document stays on its side when others come. Of a small corpus the next documents in the order of the hash follow,
    until half of the fraction is held out in bytes. Documents without a visible character are left out.

    Args:
        source: as above; "stdlib" wins over a path, and a path over a Hub dataset of the same name.
        held_out_fraction: share to hold out, strictly between 0 and 1.
        seed: which documents are held out, and which are kept under ``max_bytes``.
        max_bytes: bound on the UTF-8 bytes of both parts together, shared by ``held_out_fraction``. Whole documents are
            kept, on the side where they are without it: a random choice (by hash), or the beginning of each part of a
            text file or stream (which is then read into memory).
        text_column, config_name, split: of a table or a Hub dataset; ``split`` is the name of one split.
        streaming: read a Hub dataset while it is used instead of downloading it first.

    Raises:
        FileNotFoundError: no such file, or a folder or glob without files.
        ValueError: an argument out of range, an empty corpus, a column that is not there or not text, a file that is
            not UTF-8, a dataset that cannot be opened.
    """
    if not 0 < held_out_fraction < 1:
        raise ValueError(f"held_out_fraction must lie strictly between 0 and 1, got {held_out_fraction!r}; try 0.05.")
    if max_bytes is not None and max_bytes < 1:
        raise ValueError(f"max_bytes must be positive, got {max_bytes!r}; leave it out for the whole corpus.")
    if seed < 0:
        raise ValueError(f"seed must be zero or positive, got {seed!r}.")
    source = os.path.expanduser(os.fspath(source))
    options = {"fraction": held_out_fraction, "seed": seed, "max_bytes": max_bytes}
    if source == "stdlib":
        name = f"Python {'.'.join(map(str, sys.version_info[:3]))} standard library"
        return _split(name, Dataset.from_dict(standard_library()), "source", **options)
    from .prepared_rows import is_prepared, load_prepared  # which build on this module

    if is_prepared(source):
        if max_bytes is not None:
            raise ValueError(
                f"max_bytes={max_bytes}: the rows in {source} were prepared whole; set max_bytes=null here, or give it to `hf-elm prepare`."
            )
        return load_prepared(source)
    if _is_saved_dataset(source):
        return _from_splits(source, _load_saved(source), split, text_column, **options)
    if files := local_files(source):
        return _from_files(source, files, text_column, **options)
    refuse_missing_path(source)
    splits = hub_splits(source, config_name, streaming)
    return _from_splits(f"{source}/{config_name}" if config_name else source, splits, split, text_column, **options)


def _is_saved_dataset(folder: str) -> bool:
    """Whether `datasets` wrote the folder, by ``save_to_disk``."""
    names = os.listdir(folder) if os.path.isdir(folder) else ()
    return "dataset_dict.json" in names or {"state.json", "dataset_info.json"} <= {*names}


def _load_saved(folder: str):
    """What ``save_to_disk`` wrote, or a ValueError that names the folder."""
    try:
        return load_from_disk(folder)
    except Exception as error:  # whatever `datasets` makes of damaged files
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(
            f"source={folder!r} is no folder that save_to_disk wrote, or a damaged one: {reason}"
        ) from error


def _from_files(source: str, files: dict[str, str], text_column: str, fraction: float, seed: int, max_bytes) -> Corpus:
    """A corpus of local files: the splits that their names tell, or split by file, or a single file split within."""
    kinds = sorted({file_kind(path) for path in files.values()})
    if len(kinds) > 1:
        raise ValueError(f"source={source!r} mixes {' and '.join(kinds)} files; choose by a glob such as '*.jsonl'.")
    if named := _named_splits(files):
        parts = {split: read_files(kinds[0], part, text_column) for split, part in named.items()}
        return _from_splits(source, parts, "train", "text", fraction, seed, max_bytes)
    documents = read_files(kinds[0], files, text_column, fraction)
    key = "source" if len(files) > 1 else None if kinds == ["text"] else "text"
    return _split(source, documents, key, fraction, seed, max_bytes)


def _named_splits(files: dict[str, str]) -> dict[str, dict[str, str]]:
    """The files by split, if every name tells one, such as ``train-00001.parquet`` or ``test/a.txt``; else {}."""
    splits = {}
    for name, path in files.items():
        words = re.split(r"[^a-z]+", name.lower())
        split = next((word for word in words if word in ("train", *HELD_OUT_SPLITS)), None)
        splits.setdefault(split, {})[name] = path
    return splits if None not in splits and "train" in splits and len(splits) > 1 else {}


def _from_splits(name: str, splits, split: str, text_column: str, fraction: float, seed: int, max_bytes) -> Corpus:
    """A corpus of `datasets` splits: the held-out documents are another split's, or come from this one."""
    splits = splits if isinstance(splits, dict) else {split: splits}
    if split not in splits:
        raise ValueError(f"split={split!r} is not a split of {name!r}, which has {list(splits)}; name one of them.")
    train = text_only(splits[split], text_column)
    own = next((other for other in HELD_OUT_SPLITS if other in splits and other != split), None)
    if own is None and isinstance(train, Dataset):
        return _split(name, train, "text", fraction, seed, max_bytes)
    if own is None:
        info = (train.info.splits or {}).get(split)
        count = min(STREAM_HELD_OUT, int(fraction * info.num_examples) + 1) if info else STREAM_HELD_OUT
        held_out = train.take(count)
        train = _without(train, held_out)
    else:
        held_out = text_only(splits[own], text_column)
    train_bytes, held_out_bytes = _shared(max_bytes, fraction)
    return Corpus(name, _bounded(name, train, seed, train_bytes), _bounded(name, held_out, seed, held_out_bytes))


def _split(name: str, dataset: Dataset, key: str | None, fraction: float, seed: int, max_bytes: int | None) -> Corpus:
    """Split by the hash of column ``key``, or, where it is None, by position: the final share is held out."""
    measures = _measured(dataset, key, seed)
    visible = np.flatnonzero(measures["size"])
    size, share = measures["size"][visible], measures["share"][visible]
    if key is None:
        share = 1 - np.cumsum(size) / max(size.sum(), 1)  # what comes after a document
    held = _held_out(share, size, fraction)
    if not held.any():
        raise ValueError(
            f"source {name!r} holds {len(visible)} documents with text, which cannot be split into train and held-out; "
            f"at least two {'different texts' if key == 'text' else 'documents'} are needed."
        )
    train_bytes, held_out_bytes = _shared(max_bytes, fraction)
    train = _within(measures, visible[~held], train_bytes)
    held_out = _within(measures, visible[held], held_out_bytes)
    return Corpus(name, dataset.select(train), dataset.select(held_out))


def _bounded(name: str, dataset: Dataset | IterableDataset, seed: int, max_bytes: int | None):
    """The documents with text that fit into ``max_bytes``; ValueError where there is none."""
    if isinstance(dataset, Dataset):
        measures = _measured(dataset, "text", seed)
        dataset = dataset.select(_within(measures, np.flatnonzero(measures["size"]), max_bytes))
    elif max_bytes is not None:
        dataset = Dataset.from_dict({"text": list(_first_bytes(dataset, max_bytes))})
    if next(iter(dataset), None) is None:
        bound = "" if max_bytes is None else f" within the {max_bytes} bytes that max_bytes leaves it"
        raise ValueError(
            f"source {name!r} has a part without any text{bound}; check the splits and the column. "
            "(A stream without a held-out split gives its first documents; streaming=False splits it by text.)"
        )
    return dataset


def _without(stream: IterableDataset, held_out: IterableDataset) -> IterableDataset:
    """``stream`` without the texts of ``held_out``, whichever process reads which part of it (``skip`` counts in each part)."""
    texts = {_text_hash(document["text"]) for document in held_out}
    return stream.filter(partial(_is_other, texts=frozenset(texts)), input_columns=["text"])


def _is_other(text: str, texts: frozenset) -> bool:
    return _text_hash(text) not in texts


def _text_hash(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()


def _shared(max_bytes: int | None, fraction: float) -> tuple[int | None, int | None]:
    """The bounds of the train and the held-out part, in bytes."""
    if max_bytes is None:
        return None, None
    held_out = max(1, round(fraction * max_bytes))
    return max_bytes - held_out, held_out


def _first_bytes(stream: IterableDataset, max_bytes: int) -> Iterator[str]:
    for document in stream:
        max_bytes -= len(document["text"].encode())
        if max_bytes < 0:
            return
        yield document["text"]


def _measured(dataset: Dataset, key: str | None, seed: int) -> dict[str, np.ndarray]:
    """Per document: ``size`` in bytes (0 = no visible character), and ``share``, ``rank``: two hashes in [0, 1)."""
    measures = dataset.map(
        partial(_measure, seed=seed),
        batched=True,
        input_columns=["text", key or "text"],
        remove_columns=dataset.column_names,
        desc="Splitting",
    )
    measures = measures.with_format("numpy")[:] if len(measures) else {}
    measures = {name: np.asarray(measures.get(name, ())) for name in ("size", "share", "rank")}
    return measures if key else measures | {"rank": None}


def _measure(texts: list[str], keys: list[str], seed: int) -> dict[str, list]:
    return {
        "size": [len(text.encode()) if is_visible(text) else 0 for text in texts],
        "share": [_uniform(f"split/{seed}/{key}") for key in keys],
        "rank": [_uniform(f"choice/{seed}/{key}") for key in keys],
    }


def _uniform(key: str) -> float:
    """A number in [0, 1) that depends on ``key`` alone, the same on every machine."""
    return (int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") >> 11) / 2**53


def _within(measures: dict[str, np.ndarray], indices: np.ndarray, max_bytes: int | None) -> np.ndarray:
    """Those of ``indices``, ascending, that fit into ``max_bytes``, chosen by rank; without ranks the first."""
    if max_bytes is None:
        return indices
    size, rank = measures["size"][indices], measures["rank"]
    if rank is None:
        kept = np.cumsum(size) <= max_bytes
    else:
        kept, room = np.zeros(len(indices), dtype=bool), max_bytes
        for i in np.argsort(rank[indices], kind="stable"):
            kept[i] = size[i] <= room
            room -= size[i] * kept[i]
    if not kept.any():
        raise ValueError(
            f"max_bytes leaves {max_bytes} bytes to a part of the corpus whose smallest document has {size.min()} bytes; "
            f"raise max_bytes (it is divided by held_out_fraction)."
        )
    return indices[kept]


def _held_out(share: np.ndarray, size: np.ndarray, fraction: float) -> np.ndarray:
    """Mask of the documents whose ``share`` is below ``fraction``, and of the next until half of it is held in bytes."""
    if len(share) == 0:
        return np.zeros(0, dtype=bool)
    order = np.argsort(share, kind="stable")
    enough = np.searchsorted(np.cumsum(size[order]), fraction / 2 * size.sum()) + 1
    count = max(enough, (share < fraction).sum())
    held = share <= share[order[min(count, len(order)) - 1]]  # equal names or texts stay together
    return share < share.max() if held.all() else held
