"""Tables of scores on disk: Parquet or JSON lines, written whole or not at all, read row by row."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .embedding_inputs import import_parquet
from .embedding_outputs import check_output


SUFFIXES = (".parquet", ".jsonl")
ROWS_AT_ONCE = 1024


def check_table_output(output: str | Path) -> Path:
    """The path of a table to write.

    Raises:
        ValueError: an unknown suffix.
        FileExistsError, NotADirectoryError, PermissionError: it, or the record beside it, is there already, or cannot be created.
        ImportError: parquet, and pyarrow is not installed.
    """
    output = check_output(output, SUFFIXES)
    if record_path(output).exists() and not Path(f"{output}.partial").exists():
        raise FileExistsError(
            f"{record_path(output)}, the record of {output}, exists; remove it or choose another output."
        )
    return output


def record_path(output: Path) -> Path:
    """Where the settings and totals of a table are written."""
    return Path(f"{output}.json")


def kind_of(values: Iterable[Any]) -> str:
    """What a column holds: "int", "float" (also where all is missing), "bool" or "text"."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return "bool"
    if kinds == {int}:
        return "int"
    return "float" if kinds <= {int, float} else "text"


def as_kind(values: Iterable[Any], kind: str) -> list[Any]:
    """The values of a column of `kind_of`: in a text column everything but text and None as JSON."""
    if kind != "text":
        return list(values)
    return [value if value is None or isinstance(value, str) else json.dumps(value, default=str) for value in values]


def write_table(path: Path, rows: Iterable[dict[str, Any]], kinds: dict[str, str]) -> None:
    """Writes the rows as the suffix of ``path`` says; JSON lines have null for what is not finite.

    Args:
        kinds: column -> "int", "float", "bool", "text", or "ints", "floats", "texts" for lists; every row has these columns.
    """
    (_write_parquet if path.suffix == ".parquet" else _write_jsonl)(path, rows, kinds)


def read_table(path: str | Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a table, with ``columns`` alone where given; a row lacks a column that it does not have.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown suffix, or content that cannot be read.
        ImportError: parquet, and pyarrow is not installed.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f'{path} has the unknown suffix "{path.suffix}"; tables of scores are {" or ".join(SUFFIXES)}.'
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a table that hf-elm score wrote.")
    yield from (_read_parquet if path.suffix == ".parquet" else _read_jsonl)(path, columns)


def _write_parquet(path: Path, rows: Iterable[dict[str, Any]], kinds: dict[str, str]) -> None:
    import pyarrow as pa

    types = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "text": pa.large_string()}
    types |= {"ints": pa.list_(pa.int32()), "floats": pa.list_(pa.float64()), "texts": pa.list_(pa.large_string())}
    schema = pa.schema([(name, types[kind]) for name, kind in kinds.items()])
    with import_parquet().ParquetWriter(path, schema) as writer:
        for part in _parts(rows):
            writer.write_table(pa.Table.from_pylist(part, schema=schema))


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]], kinds: dict[str, str]) -> None:
    with open(path, "w", encoding="utf-8", errors="surrogatepass", newline="\n") as file:
        for row in rows:
            row = _finite({name: row[name] for name in kinds})
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _finite(value):
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parts(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    part: list[dict[str, Any]] = []
    for row in rows:
        part.append(row)
        if len(part) == ROWS_AT_ONCE:
            yield part
            part = []
    if part:
        yield part


def _read_parquet(path: Path, columns: list[str] | None) -> Iterator[dict[str, Any]]:
    parquet = import_parquet()
    from pyarrow import ArrowInvalid

    try:
        file = parquet.ParquetFile(path)
    except (ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from None
    present = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
    for batch in file.iter_batches(columns=present, batch_size=ROWS_AT_ONCE):
        yield from batch.to_pylist()


def _read_jsonl(path: Path, columns: list[str] | None) -> Iterator[dict[str, Any]]:
    number = 0
    with open(path, encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, 1):  # noqa: B007, the message tells it
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError("not an object")
                    yield row if columns is None else {name: row[name] for name in columns if name in row}
        except ValueError as error:  # UnicodeDecodeError too
            raise ValueError(f"{path}: line {number} is not a JSON object ({error}).") from None
