"""Corpus -> tokenizer -> packed rows on disk, shard by shard in parallel; an interrupted preparation goes on where it was."""

import contextlib
import itertools
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value
from datasets.arrow_writer import ArrowWriter
from tqdm.auto import tqdm

from . import run_folder
from .families import find_family
from .trainers.corpora import load_corpus
from .trainers.encoder_rows import encoder_rows
from .trainers.packing import iter_packed_rows
from .trainers.prepared_rows import MANIFEST, PARTS, SETTINGS, TOKENIZER
from .training_run import corpus_options, make_tokenizer


COLUMNS = {  # what a part keeps of packed rows; the collator makes the labels of the train part
    "train": ("input_ids", "segment_ids", "position_ids"),
    "held_out": ("input_ids", "segment_ids", "position_ids", "labels", "document_ids"),
}
COUNTS = ("documents", "bytes", "tokens", "rows")


def prepare_shards(settings: dict[str, Any], output: str | Path, num_proc: int = 1, progress: bool = True) -> dict:
    """Writes the rows of a corpus to ``output`` (layout: `trainers.prepared_rows`); returns the manifest.

    Finished shards stay when it is interrupted, and the same call makes the missing ones. The rows depend on neither
    ``num_proc`` nor interruptions.

    Args:
        settings: ``family``, ``seed``, ``shard_documents`` and the sections ``data``, ``tokenizer``.
        output: a new or empty folder, or one of an interrupted call.
        num_proc: processes.
        progress: show a bar of finished shards.

    Raises:
        FileExistsError: ``output`` holds something else, or is finished.
        ValueError: ``output`` was begun with other settings or another corpus; the first difference is named. A setting out of
            range.
    """
    _check(settings, num_proc)
    folder = Path(output)
    begun = _claim(folder, settings)
    corpus = load_corpus(**corpus_options(settings["data"]) | {"streaming": False}, seed=settings["seed"])
    documents = {"train": corpus.train, "held_out": corpus.held_out}
    tokenizer = make_tokenizer({**settings, "model": {}}, corpus)
    _check_corpus(folder, begun, documents)
    if not (folder / TOKENIZER).is_dir():
        with run_folder.new_folder(folder / TOKENIZER, "output") as staging:
            tokenizer.save_pretrained(staging)
    jobs = [job for part in PARTS for job in _shards(part, len(documents[part]), settings["shard_documents"])]
    state = (documents, tokenizer, settings, folder)
    waiting = [job for job in jobs if _finished(folder, job) is None]
    with tqdm(
        total=len(jobs), initial=len(jobs) - len(waiting), unit="shard", disable=not progress, file=sys.stderr
    ) as bar:
        for _ in _written(state, waiting, num_proc):
            bar.update()
    manifest = _manifest(folder, corpus.name, settings, jobs)
    run_folder.write_json(folder / MANIFEST, manifest)
    return manifest


def _check(settings, num_proc):
    if find_family(settings["family"]).pairs:
        raise ValueError(f"family={settings['family']} trains on pairs, which are not prepared; leave prepare out.")
    for name, value in (("num_proc", num_proc), ("shard_documents", settings["shard_documents"])):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if settings["data"]["sequence_length"] < 2:
        raise ValueError(f"data.sequence_length must be at least 2, got {settings['data']['sequence_length']}.")


def _claim(folder, settings) -> dict:
    """The settings of an interrupted call, or ``settings``; refuses a folder that is finished, foreign or of other settings."""
    if (folder / MANIFEST).exists():
        raise FileExistsError(f"output={folder} is finished already; train from it, or choose another folder.")
    if not (folder / SETTINGS).is_file():
        run_folder.require_empty(folder, "output")
        return dict(settings)
    begun = _read_settings(folder / SETTINGS)
    known = {name: value for name, value in begun.items() if name != "corpus"}
    if difference := run_folder.first_difference(known, json.loads(json.dumps(settings))):
        raise ValueError(
            f"output={folder} was begun with other settings: {difference}. Give the same settings to finish it, or choose another "
            "folder."
        )
    return begun


def _read_settings(path):
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        settings = error
    if not isinstance(settings, dict) or not isinstance(settings.get("corpus", {}), dict):
        raise ValueError(f"{path} is damaged: {settings}; choose another output, or remove this one.")
    return settings


def _check_corpus(folder, settings, documents):
    """Writes the settings with the corpus's numbers of documents and some of their texts; refuses another than there are."""
    found = {}
    for part, rows in documents.items():
        digest = blake2b(digest_size=16)
        for place in sorted({*np.linspace(0, len(rows) - 1, 64).astype(int).tolist()}):
            digest.update(rows[place]["text"].encode())
        found |= {f"{part}_documents": len(rows), f"{part}_sample": digest.hexdigest()}
    if difference := run_folder.first_difference(settings.setdefault("corpus", found), found):
        raise ValueError(
            f"output={folder} was begun with another text of the corpus: {difference}. Choose another folder for the new text."
        )
    run_folder.write_json(folder / SETTINGS, settings)


def _shards(part: str, documents: int, size: int) -> list[tuple]:
    """(part, number, number of shards, first document, end) of each shard."""
    count = -(-documents // size)
    return [(part, i, count, i * size, min((i + 1) * size, documents)) for i in range(count)]


def _path(folder: Path, job: tuple) -> Path:
    part, number, count = job[:3]
    return folder / part / f"{number:05d}-of-{count:05d}.arrow"


def _finished(folder, job) -> dict | None:
    """The counts of a shard that is there whole."""
    path = _path(folder, job)
    try:
        counts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return counts if path.stat().st_size == counts["size"] else None
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _manifest(folder, name, settings, jobs) -> dict:
    parts: dict[str, Any] = {part: dict.fromkeys(COUNTS, 0) | {"shards": []} for part in PARTS}
    for job in jobs:
        counts, part = _finished(folder, job), parts[job[0]]
        part["shards"].append({"file": _path(folder, job).relative_to(folder).as_posix(), **counts})
        part.update({key: part[key] + counts[key] for key in COUNTS})
    return {"corpus": name, "settings": settings, "parts": parts}


# ------------------------------------------------------------------------------------------------- worker processes

_STATE: tuple = ()  # documents by part, tokenizer, settings, folder


def _begin(*state):
    global _STATE
    _STATE = state
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism


def _written(state, jobs, num_proc) -> Iterator[None]:
    """One item per finished shard."""
    if num_proc == 1 or len(jobs) < 2:
        _begin(*state)
        for job in jobs:
            yield write_shard(job)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    pool = ProcessPoolExecutor(min(num_proc, len(jobs)), context, initializer=_begin, initargs=state)
    try:
        for future in as_completed([pool.submit(write_shard, job) for job in jobs]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def write_shard(job: tuple) -> None:
    """Writes one shard and then its counts: what has counts is whole."""
    part, _, _, first, end = job
    documents, tokenizer, settings, folder = _STATE
    path = _path(folder, job)
    path.parent.mkdir(exist_ok=True)
    order = np.random.default_rng([settings["seed"], PARTS.index(part)]).permutation(len(documents[part]))[first:end]
    texts = documents[part].select(order)
    counts = dict.fromkeys(COUNTS, 0) | {"documents": len(texts)}
    counts["bytes"] = sum(len(text.encode()) for text in texts["text"])
    rows = _rows(texts, tokenizer, settings, part, first)
    temporary = path.with_suffix(".unfinished")
    try:
        for row in _recorded(rows, temporary):
            counts["rows"] += 1
            counts["tokens"] += int((row["segment_ids"] >= 0).sum()) if "segment_ids" in row else len(row["input_ids"])
        temporary.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    run_folder.write_json(path.with_suffix(".json"), counts | {"size": path.stat().st_size})


def _rows(texts: Dataset, tokenizer, settings, part, first) -> Iterator[dict]:
    data, stream = settings["data"], texts.select_columns(["text"]).to_iterable_dataset()
    if find_family(settings["family"]).encoder:
        args = SimpleNamespace(max_length=data["sequence_length"], seed=settings["seed"], text_column="text")
        yield from encoder_rows(stream, tokenizer, args)
        return
    options = {"strategy": data["strategy"], "reset_position_ids": data["reset_position_ids"]}
    for row in iter_packed_rows(stream, tokenizer, data["sequence_length"], **options):
        row["document_ids"] = np.where(row["document_ids"] < 0, -1, row["document_ids"] + first)
        yield {name: row[name] for name in COLUMNS[part] if name in row}


def _recorded(rows: Iterator[dict], path: Path) -> Iterator[dict]:
    """Hands ``rows`` on while it writes them to an Arrow file."""
    head = next(rows, {"input_ids": ()})
    features = Features({name: [Value("int32")] for name in head})
    with ArrowWriter(path=str(path), features=features, writer_batch_size=1000) as writer:
        for row in itertools.chain([head], rows) if len(head["input_ids"]) else ():
            writer.write({name: np.asarray(values) for name, values in row.items()})
            yield row
        writer.finalize()
