"""Where the text of a corpus comes from: the standard library, local files, the Hub; every source as `datasets`."""

import difflib
import glob
import os
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from datasets import Dataset, Features, IterableDataset, Value, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError


DOCUMENT_MARK = "<|endoftext|>"  # between the documents of a text file, where it has any
BLOCK_CHARS = 8192  # without marks the documents of a text file are blocks of about so many characters
CHUNK_CHARS = 1 << 20  # read at a time
TABLES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".arrow": "arrow"}
COMPRESSIONS = {".gz", ".bz2", ".xz", ".zst"}
NOT_LIBRARY = {"test", "tests", "idle_test", "idlelib", "lib2to3", "encodings", "pydoc_data", "__pycache__"}
NOT_LIBRARY |= {"site-packages", "dist-packages", "lib-dynload"}


def standard_library() -> dict[str, list[str]]:
    """Columns ``text`` and ``source``: the running interpreter's library and manual, in the order of names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    documents = {}
    for path in root.rglob("*.py"):
        name = path.relative_to(root)
        generated = name.name.startswith("_sysconfigdata") or name.parts[0].startswith("config-")  # differs by machine
        if generated or not NOT_LIBRARY.isdisjoint(name.parts):
            continue
        try:
            with tokenize.open(path) as file:  # honours a coding line
                documents[name.as_posix()] = file.read()
        except (SyntaxError, UnicodeDecodeError):  # not text in the encoding it declares
            continue
    if not documents:
        raise ValueError(f"source='stdlib': {root} holds no .py sources; name a file, a folder or a dataset instead.")
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions ship the manual apart
        topics = {}
    documents |= {f"pydoc_data/topics/{topic}": text for topic, text in topics.items()}
    return {"text": [documents[name] for name in sorted(documents)], "source": sorted(documents)}


def local_files(source: str) -> dict[str, str]:
    """Paths of a file, folder or glob by their names relative to the folder, sorted; {} where ``source`` is no path."""
    if os.path.isfile(source):
        return {os.path.basename(source): source}
    if os.path.isdir(source):
        root, paths = source, Path(source).rglob("*")
    elif glob.has_magic(source):
        root = os.path.dirname(source[: re.search(r"[*?[]", source).start()]) or "."
        paths = map(Path, glob.iglob(source, recursive=True))
    else:
        return {}
    files = {_shown(path.relative_to(root)): str(path) for path in paths if path.is_file()}
    files = {name: files[name] for name in sorted(files) if not re.search(r"(^|/)(\.|__pycache__/)", name)}
    if not files:
        raise FileNotFoundError(f"source={source!r} holds no files (hidden ones do not count).")
    return files


def _shown(path: Path) -> str:
    """A name that can be written as UTF-8, whatever bytes it is made of."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode()


def refuse_missing_path(source: str):
    """Raise FileNotFoundError where ``source`` can only be meant as a path, offering the nearest name there is."""
    if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source) and _suffix(source) not in {*TABLES, ".txt", ".md", ".py"}:
        return  # may be a Hub id
    folder, name = os.path.split(source)
    near = difflib.get_close_matches(name, os.listdir(folder or ".") if os.path.isdir(folder or ".") else [], n=1)
    hint = f" Did you mean {os.path.join(folder, near[0])!r}?" if near else ""
    raise FileNotFoundError(f"source={source!r}: no such file or folder.{hint}")


def file_kind(path: str) -> str:
    """The `datasets` builder of a table file, or "text"."""
    return TABLES.get(_suffix(path), "text")


def _suffix(path: str) -> str:
    """The suffix that tells the kind of a file: ``.jsonl`` for ``a.jsonl`` and ``a.jsonl.gz``."""
    path = Path(path)
    return (path.with_suffix("") if path.suffix in COMPRESSIONS else path).suffix.lower()


def read_files(kind: str, files: dict[str, str], text_column: str, fraction: float | None = None) -> Dataset:
    """Columns ``text`` and ``source`` of files of one kind, named by their keys.

    Args:
        fraction: a single text file without marks is to be split so: its blocks are made small enough.

    Raises:
        ValueError: a file that cannot be read, is not UTF-8 or lacks the column.
    """
    if kind != "text":
        return concatenate_datasets([_read_table(kind, name, path, text_column) for name, path in files.items()])
    stamps = tuple((os.path.getmtime(path), os.path.getsize(path)) for path in files.values())
    block_chars = BLOCK_CHARS if len(files) == 1 else None
    if block_chars and fraction:
        block_chars = max(128, min(BLOCK_CHARS, int(stamps[0][1] * min(fraction, 1 - fraction) / 4)))
    arguments = {"files": tuple(files.items()), "block_chars": block_chars, "stamps": stamps}
    features = Features({"text": Value("string"), "source": Value("string")})
    try:  # datasets keeps the rows on disk under a hash of the arguments, hence the time stamps among them
        return Dataset.from_generator(_read_texts, features=features, gen_kwargs=arguments)
    except DatasetGenerationError as error:
        raise error.__cause__ or error from None


def _read_table(kind: str, name: str, path: str, text_column: str) -> Dataset:
    table = open_table(kind, path)
    try:
        table = text_only(table, text_column)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return table.add_column("source", [name] * len(table))


def open_table(kind: str, path: str) -> Dataset:
    """The rows of a table file.

    Raises:
        ValueError: whatever `datasets` makes of a file that is empty, damaged or something else than its suffix says.
    """
    options = {"sep": "\t"} if _suffix(path) == ".tsv" else {}
    try:
        return load_dataset(kind, data_files=glob.escape(path), split="train", **options)
    except StopIteration:
        raise ValueError(f"{path} has no rows that can be read as {kind}.") from None
    except Exception as error:
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read as {kind}: {reason[:600]}") from error


def _read_texts(files: tuple, block_chars: int | None, stamps: tuple) -> Iterator[dict[str, str]]:
    for name, path in files:
        with _open_text(path) as file:
            for text in _documents(file, block_chars):
                yield {"text": text, "source": name}


def _documents(file: TextIO, block_chars: int | None) -> Iterator[str]:
    """What stands between marks, if there is one within the first 2^20 characters, else blocks, else the whole."""
    rest = file.read(CHUNK_CHARS)
    marked = DOCUMENT_MARK in rest
    if not marked and block_chars is None:
        rest += file.read()
    while marked or block_chars:
        *parts, rest = _cut_at_marks(rest) if marked else _cut_in_blocks(rest, block_chars)
        yield from parts
        chunk = file.read(CHUNK_CHARS)
        if not chunk:
            break
        rest += chunk
    yield rest.strip("\r\n") if marked else rest


def _cut_at_marks(text: str) -> list[str]:
    """What stands between marks; the last may go on."""
    *parts, rest = text.split(DOCUMENT_MARK)
    return [*(part.strip("\r\n") for part in parts), rest]


def _cut_in_blocks(text: str, block_chars: int) -> list[str]:
    """Blocks of ``block_chars`` to twice that, up to a blank line, a line's or a word's end; the last may go on."""
    blocks, start = [], 0
    while len(text) - start > 2 * block_chars:
        low, high = start + block_chars, start + 2 * block_chars
        ends = (re.compile(pattern).search(text, low, high) for pattern in (r"\n\r?\n", r"\n", r"\s"))
        end = next((match.end() for match in ends if match), high)
        blocks.append(text[start:end])
        start = end
    return [*blocks, text[start:]]


@contextmanager
def _open_text(path: str):
    """A file as UTF-8 text with its own line ends, or a ValueError that names it."""
    with open(path, "rb") as file:
        if b"\0" in file.read(8192):
            raise ValueError(f"{path} is a binary file; name the text files by a glob such as '*.txt'.")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason}); convert it or leave it out by a glob.") from None


def hub_splits(source: str, config_name: str | None, streaming: bool) -> dict:
    """The splits of a Hub dataset, or a ValueError with the reason and the nearest local name."""
    try:
        return load_dataset(source, config_name, streaming=streaming)
    except (DatasetGenerationError, OSError, ValueError) as error:
        near = difflib.get_close_matches(source, ["stdlib", *os.listdir()], n=1)
        hint = f" (Did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"source={source!r}{hint} is neither 'stdlib' nor a path, and cannot be opened as a dataset of the Hub: {error}"
        ) from error


def require_column(dataset: Dataset | IterableDataset, column: str, argument: str = "text_column"):
    """Raise ValueError unless ``dataset`` has ``column``; the message names the columns it has and the nearest one."""
    columns = dataset.column_names
    if columns is None:  # a stream tells its columns with its first row
        columns = list(next(iter(dataset), {}))
        if not columns:
            raise ValueError("The dataset has no rows; check the source and its split.")
    if column not in columns:
        near = difflib.get_close_matches(column, columns, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Name the right one by {argument}."
        raise ValueError(f"{argument}={column!r} is not a column of the dataset, which has {columns}. {hint}")


def text_only(dataset: Dataset | IterableDataset, text_column: str) -> Dataset | IterableDataset:
    """The text column alone, under the name ``text``; streams leave documents without a visible character out."""
    require_column(dataset, text_column)
    feature = (dataset.features or {}).get(text_column)
    if feature is not None and getattr(feature, "dtype", None) not in ("string", "large_string", "null"):
        raise ValueError(f"text_column={text_column!r} must hold text, but it holds {feature}; name another column.")
    dataset = dataset.select_columns([text_column])
    dataset = dataset if text_column == "text" else dataset.rename_column(text_column, "text")
    if isinstance(dataset, Dataset):
        return dataset.cast_column("text", Value("string"))
    return dataset.filter(is_visible, input_columns=["text"])


def is_visible(text: str | None) -> bool:
    """Whether there is a character to see."""
    return bool(text and text.strip())
