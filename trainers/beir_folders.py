"""Folders of BEIR's layout: ``corpus.jsonl``, ``queries.jsonl``, ``qrels/<split>.tsv``."""

import csv
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from .retrieval_pairs import RetrievalPairs


BEIR_FILES = ("corpus.jsonl", "queries.jsonl")


def read_beir(folder: str | os.PathLike, split: str) -> RetrievalPairs:
    """One split of a folder of BEIR's layout: ``corpus.jsonl``, ``queries.jsonl``, ``qrels/<split>.tsv``; all its documents.

    A document is its title, a line break, its text. Judgements above 0 are positives, others known negatives.

    Raises:
        FileNotFoundError: a file is missing; the message names it and the splits there are.
        ValueError: an id that is twice or nowhere, a line that is no record; file and line are named.
    """
    folder = Path(folder)
    for name in BEIR_FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} has no {name}; BEIR's layout is corpus.jsonl, queries.jsonl, qrels/<split>.tsv."
            )
    file = folder / "qrels" / f"{split}.tsv"
    if not file.is_file():
        found = ", ".join(beir_splits(folder)) or "none"
        raise FileNotFoundError(f"{folder} has no qrels/{split}.tsv; its splits are: {found}.")
    documents, queries = _read_texts(folder / BEIR_FILES[0]), _read_texts(folder / BEIR_FILES[1])
    place = {name: index for index, name in enumerate(documents)}
    judged: dict[str, dict[int, bool]] = {}
    for line, query, document, grade in _read_qrels(file):
        for name, known, where in ((query, queries, BEIR_FILES[1]), (document, place, BEIR_FILES[0])):
            if name not in known:
                raise ValueError(f"{file}, line {line}: id {name!r} is not in {where}.")
        if place[document] in judged.setdefault(query, {}):
            raise ValueError(f"{file}, line {line}: query {query!r} and document {document!r} are judged twice.")
        judged[query][place[document]] = grade > 0
    answered = [query for query, documents_of in judged.items() if any(documents_of.values())]
    if not answered:
        raise ValueError(f"{file} judges no document relevant; every query needs a score above 0.")
    return RetrievalPairs(
        queries=[queries[query] for query in answered],
        documents=list(documents.values()),
        positives=[[i for i, good in judged[query].items() if good] for query in answered],
        negatives=[[i for i, good in judged[query].items() if not good] for query in answered],
        query_ids=answered,
        document_ids=list(documents),
    )


def beir_splits(folder: str | os.PathLike) -> list[str]:
    """Names of the splits that a folder of BEIR's layout has judgements for."""
    return sorted(path.stem for path in (Path(folder) / "qrels").glob("*.tsv"))


@contextmanager
def _opened(file: Path) -> Iterator[TextIO]:
    """The file as UTF-8 text, or a ValueError that names it."""
    with file.open(encoding="utf-8", newline="") as lines:
        try:
            yield lines
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 text ({error.reason}); convert it first.") from None
        except csv.Error as error:
            raise ValueError(f"{file} is no table of tab-separated values ({error}).") from None


def _read_texts(file: Path) -> dict[str, str]:
    """Id -> text of ``corpus.jsonl`` or ``queries.jsonl``, in order."""
    texts: dict[str, str] = {}
    with _opened(file) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                name, title, text = str(record["_id"]), record.get("title") or "", record["text"]
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(f'{file}, line {number} is no record with "_id" and "text" ({error}).') from None
            if name in texts:
                raise ValueError(f"{file}, line {number}: id {name!r} is there twice.")
            texts[name] = f"{title}\n{text}" if title else text
    if not texts:
        raise ValueError(f"{file} is empty; it needs a JSON object with _id and text on each line.")
    return texts


def _read_qrels(file: Path):
    """Line number, query id, document id and score of each judgement."""
    with _opened(file) as lines:
        for number, cells in enumerate(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE), start=1):
            if not cells or (number == 1 and cells[-1] == "score"):
                continue
            try:
                query, document, grade = cells
                yield number, query, document, float(grade)
            except ValueError:
                raise ValueError(f"{file}, line {number} must be query-id, corpus-id, score, got {cells}.") from None
