"""The texts that ``hf-elm embed`` reads: lines, rows of tables, or whole files of a folder, each with an id."""

import csv
import gzip
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


STDIN = "-"
LINES, TABLES = (".txt",), (".jsonl", ".csv", ".tsv", ".parquet")
Id = int | str


@dataclass
class EmbeddingInputs:
    """Texts and their ids, in the order in which they were given.

    Attributes:
        texts: the texts.
        ids: the value of ``id_column``, else the path below the folder for whole files, else the number of the row from
            0, with the file's path before it where there are several inputs.
        kept: further columns of tables, by name.
    """

    texts: list[str] = field(default_factory=list)
    ids: list[Id] = field(default_factory=list)
    kept: dict[str, list[Any]] = field(default_factory=dict)


def read_inputs(
    sources: list[str], text_column: str = "text", id_column: str | None = None, keep: Sequence[str] = ()
) -> EmbeddingInputs:
    """Reads every source in turn.

    ========================================  ==================================================
    source                                    text
    ========================================  ==================================================
    ``-`` (standard input), ``.txt``          line; an empty line is an empty text, so that
                                              the number of the line stays the number of the row
    ``.jsonl``, ``.csv``, ``.tsv``,           row: its ``text_column``
    ``.parquet``
    folder                                    UTF-8 file, by path; hidden ones do not count
    ========================================  ==================================================

    All but parquet may end in ``.gz`` as well. ``keep`` names further columns of tables to read; other sources have none.

    Raises:
        FileNotFoundError: a source does not exist.
        ValueError: an unknown suffix, unreadable or non-UTF-8 content, a missing column, a row without a text, no text.
        ImportError: a parquet file, and pyarrow is not installed.
    """
    inputs = EmbeddingInputs(kept={name: [] for name in keep})
    for source in sources:
        if keep and (source == STDIN or os.path.isdir(source)):
            raise ValueError(
                f"{source} has no columns, and so no {keep[0]!r} to keep; leave keep out, or give tables."
            )
        if source == STDIN:
            rows = enumerate(_lines(sys.stdin, "standard input"))
        elif os.path.isdir(source):
            rows = _whole_files(Path(source))
        else:
            rows = _rows(source, text_column, id_column, keep)
        for own, text, *kept in rows:
            if not isinstance(text, str):
                raise ValueError(
                    f"{source}: the row with id {own} has no text in {text_column!r} but {text!r}; fill it, or leave the "
                    "row out."
                )
            inputs.ids.append(f"{source}:{own}" if len(sources) > 1 and id_column is None else own)
            inputs.texts.append(text)
            for name, value in zip(keep, kept, strict=True):
                inputs.kept[name].append(value)
    if not inputs.texts:
        raise ValueError(f"no texts in {', '.join(sources)}; give at least one.")
    return inputs


def _rows(source: str, text_column: str, id_column: str | None, keep: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Id, text and kept columns of every row of a file."""
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"input {source} does not exist; give files, folders, or - for standard input.")
    suffix = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    if suffix in LINES and keep:
        raise ValueError(f"{source} has no columns, and so no {keep[0]!r} to keep; leave keep out, or give tables.")
    if suffix in LINES:
        with _opened(path) as file:
            yield from enumerate(_lines(file, source))
        return
    if suffix not in TABLES:
        known = ", ".join((*LINES, *TABLES))
        raise ValueError(
            f'input {source} has the unknown suffix "{suffix}"; known are {known}, and folders of text files.'
        )
    read = {".jsonl": _jsonl, ".parquet": _parquet}.get(suffix, _csv)
    columns = [text_column, *([] if id_column is None else [id_column]), *keep]
    for number, row in enumerate(read(path, columns)):
        missing = [name for name in columns if name not in row]
        if missing:
            option = {text_column: "text_column", id_column: "id_column"}.get(missing[0], "keep")
            raise ValueError(
                f"{option}={missing[0]!r} is not in row {number} of {source}, which has {list(row)}; name another by "
                f"{option}=."
            )
        own = number if id_column is None else row[id_column]
        yield own, row[text_column], *(row[name] for name in keep)


def _lines(file, name) -> Iterator[str]:
    try:
        for line in file:
            yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text ({error.reason}); convert it first.") from None


def _jsonl(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    with _opened(path) as file:
        for number, line in enumerate(_lines(file, path), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}: line {number} is not JSON ({error}).") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}: line {number} must be a JSON object, got {type(row).__name__}.")
            yield row


def _csv(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)  # documents are longer than its 128 KiB
    tabs = path.with_suffix("").suffix == ".tsv" or path.suffix == ".tsv"
    with _opened(path, newline="") as file:
        try:
            yield from csv.DictReader(file, delimiter="\t" if tabs else ",", strict=True)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text ({error.reason}); convert it first.") from None
        except csv.Error as error:
            raise ValueError(f"{path} cannot be read as a table: {error}.") from None


def _parquet(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    parquet = import_parquet()
    from pyarrow import ArrowInvalid

    try:
        file = parquet.ParquetFile(path)
    except (ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from None
    present = [name for name in columns if name in file.schema_arrow.names]
    if len(present) < len(columns):  # the caller names the columns that there are
        yield dict.fromkeys(file.schema_arrow.names)
        return
    for batch in file.iter_batches(columns=present):
        yield from batch.to_pylist()


def import_parquet():
    """``pyarrow.parquet``, or an ImportError that says how to install it."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise ImportError('parquet files need pyarrow; install it by pip install "hf_elm[retrieval]".') from None
    return pyarrow.parquet


def _whole_files(folder: Path) -> Iterator[tuple[Id, str]]:
    """Relative path and content of every file."""
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    if not names:
        raise ValueError(f"input folder {folder} holds no files (hidden ones do not count).")
    tables = [name for name in names if name.suffix.lower() in TABLES]
    if tables:
        raise ValueError(
            f"input folder {folder} holds the table {tables[0]}; give tables themselves, not their folder."
        )
    for name in names:
        try:
            yield name.as_posix(), (folder / name).read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{folder / name} is not UTF-8 text ({error.reason}); move it out of the folder."
            ) from None


@contextmanager
def _opened(path: Path, newline: str | None = None):
    """A text file, plain or gzip."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline=newline) as file:
        try:
            yield file
        except (gzip.BadGzipFile, EOFError) as error:
            raise ValueError(f"{path} is not a readable gzip file ({error}).") from None
