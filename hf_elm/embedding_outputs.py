"""The file that ``hf-elm embed`` writes: rows gather in a folder beside it, and the file appears whole at the end."""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .embedding_inputs import EmbeddingInputs, import_parquet
from .run_folder import first_difference, require_writable, write_json


SUFFIXES = (".npy", ".parquet", ".jsonl")
SETTINGS, PROGRESS, VECTORS = "settings.json", "progress.json", "vectors.npy"
ROWS_AT_ONCE = 8192


def check_output(output: str | Path, suffixes: tuple[str, ...] = SUFFIXES) -> Path:
    """The path of the file to write.

    Args:
        suffixes: that are known.

    Raises:
        ValueError: an unknown suffix.
        FileExistsError, NotADirectoryError, PermissionError: it is there already, or cannot be created.
        ImportError: parquet, and pyarrow is not installed.
    """
    output = Path(output)
    if output.suffix not in suffixes:
        raise ValueError(f'output={output} has the unknown suffix "{output.suffix}"; known are {", ".join(suffixes)}.')
    if output.exists():
        raise FileExistsError(f"output={output} exists; choose another file or remove it first.")
    require_writable(output, "output")
    if output.suffix == ".parquet":
        import_parquet()
    return output


class PartialEmbeddings:
    """The rows that are done, in the folder ``<output>.partial``, until `finish` makes the output of them.

    Args:
        output: the file to write.
        settings: whatever decides the vectors, as JSON; an earlier run's rows are kept if its settings are the same.
        shape: ``(texts, dimensions)``.

    Attributes:
        done: rows there are.
        num_truncated: how many of those were cut.

    Raises:
        FileExistsError: the folder holds rows of other settings; the first that differs is named.
    """

    def __init__(self, output: Path, settings: dict[str, Any], shape: tuple[int, int], dtype: np.dtype):
        self.output, self.folder, self.shape, self.dtype = output, Path(f"{output}.partial"), shape, np.dtype(dtype)
        self.done = self.num_truncated = 0
        if (self.folder / SETTINGS).is_file():
            self._resume(settings)
        else:
            self._start(settings)

    def _start(self, settings):
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise FileExistsError(f"{self.folder} is in the way and holds no interrupted run; move it elsewhere.")
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / VECTORS, "wb") as file:
            self._write_header(file)
        write_json(self.folder / PROGRESS, {"done": 0, "truncated": 0})
        write_json(self.folder / SETTINGS, settings)  # last: a folder without it was never begun

    def _resume(self, settings):
        remedy = f"give the same inputs and settings to continue it, or remove {self.folder} to start anew"
        try:
            old = json.loads((self.folder / SETTINGS).read_text(encoding="utf-8"))
            progress = json.loads((self.folder / PROGRESS).read_text(encoding="utf-8"))
            size = os.path.getsize(self.folder / VECTORS)
        except (OSError, ValueError) as error:
            raise FileExistsError(f"{self.folder} is damaged ({error}); remove it to start anew.") from None
        if difference := first_difference(old, json.loads(json.dumps(settings))):
            raise FileExistsError(f"{self.folder} holds an interrupted run that differs: {difference}; {remedy}.")
        self.done, self.num_truncated = progress["done"], progress["truncated"]
        end = self._header_bytes() + self.done * self.shape[1] * self.dtype.itemsize
        if size < end:
            raise FileExistsError(f"{self.folder} is damaged ({VECTORS} is too short); remove it to start anew.")
        os.truncate(self.folder / VECTORS, end)  # rows of a batch that was not finished

    def _write_header(self, file: BinaryIO) -> None:
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(file, header)

    def _header_bytes(self):
        buffer = io.BytesIO()
        self._write_header(buffer)
        return buffer.tell()

    def append(self, vectors: np.ndarray, truncated: int) -> None:
        """Adds rows for good; ``truncated`` is how many texts have been cut so far, in all."""
        with open(self.folder / VECTORS, "ab") as file:
            file.write(np.ascontiguousarray(vectors, dtype=self.dtype).data)
            file.flush()
            os.fsync(file.fileno())
        self.done, self.num_truncated = self.done + len(vectors), truncated
        write_json(self.folder / PROGRESS, {"done": self.done, "truncated": truncated})

    def finish(self, inputs: EmbeddingInputs, include_text: bool) -> None:
        """Writes the output, whole or not at all, and removes the folder."""
        vectors = self.folder / VECTORS
        if self.output.suffix == ".npy":
            finished = vectors
        else:
            finished = self.folder / f"finished{self.output.suffix}"
            write = _write_parquet if self.output.suffix == ".parquet" else _write_jsonl
            with contextlib.closing(_Rows(vectors, inputs, include_text)) as rows:
                write(finished, rows)
        if self.output.exists():
            raise FileExistsError(f"output={self.output} has been made meanwhile; the vectors are in {vectors}.")
        os.replace(finished, self.output)
        shutil.rmtree(self.folder, ignore_errors=True)


class _Rows:
    """Ids, texts and vectors, some thousand at a time."""

    def __init__(self, vectors: Path, inputs: EmbeddingInputs, include_text: bool):
        self.vectors, self.inputs, self.include_text = np.load(vectors, mmap_mode="r"), inputs, include_text

    def close(self) -> None:
        del self.vectors

    def __iter__(self) -> Iterator[tuple[dict[str, list], np.ndarray]]:
        for start in range(0, len(self.vectors), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            columns: dict[str, list] = {"id": self.inputs.ids[part]}
            if self.include_text:
                columns["text"] = self.inputs.texts[part]
            yield columns, np.asarray(self.vectors[part])


def _write_parquet(path: Path, rows: _Rows) -> None:
    """Columns id, text if asked for, and embedding, a list of fixed length."""
    import pyarrow as pa

    whole_numbers = all(isinstance(value, int) for value in rows.inputs.ids)
    own = pa.from_numpy_dtype(rows.vectors.dtype)
    fields = {"id": pa.int64() if whole_numbers else pa.string(), "text": pa.large_string()}
    schema = [(name, kind) for name, kind in fields.items() if name == "id" or rows.include_text]
    schema = pa.schema([*schema, ("embedding", pa.list_(own, rows.vectors.shape[1]))])
    with import_parquet().ParquetWriter(path, schema) as writer:
        for columns, vectors in rows:
            if not whole_numbers:
                columns["id"] = [str(value) for value in columns["id"]]
            embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
            writer.write_table(pa.table({**columns, "embedding": embedding}, schema=schema))


def _write_jsonl(path: Path, rows: _Rows) -> None:
    """One object per line; numbers have the fewest digits that give the same float back."""
    with open(path, "w", encoding="utf-8") as file:
        for columns, vectors in rows:
            for i, vector in enumerate(vectors):
                row = {name: values[i] for name, values in columns.items()}
                row["embedding"] = [float(str(value)) for value in vector]
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
