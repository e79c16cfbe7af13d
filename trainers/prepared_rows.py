"""Rows that were tokenised and packed beforehand: a folder of memory-mapped Arrow shards with a manifest.

    FOLDER/manifest.json               settings, counts, and the shards of each part; written last
    FOLDER/tokenizer/                  the tokenizer of the rows
    FOLDER/train/00000-of-00012.arrow  rows; beside each shard its counts as .json
    FOLDER/held_out/…

Reading needs no memory but the pages in use, and any row is reached at once: a resumed run skips nothing.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from .corpora import Corpus


MANIFEST, SETTINGS, TOKENIZER = "manifest.json", "settings.json", "tokenizer"
PARTS = ("train", "held_out")


@dataclass(frozen=True)
class PreparedCorpus(Corpus):
    """Rows to learn from and rows held out, with ``input_ids``; packed ones with ``segment_ids``.

    Attributes:
        settings: what the rows were made by: ``family``, ``seed``, and the sections ``tokenizer`` and ``data``.
        tokenizer_folder: the tokenizer of the rows.
    """

    settings: dict[str, Any]
    tokenizer_folder: str


def is_prepared(folder: str | Path) -> bool:
    """Whether ``hf-elm prepare`` wrote, or began to write, the folder."""
    folder = Path(folder)
    return (folder / MANIFEST).is_file() or ((folder / SETTINGS).is_file() and (folder / TOKENIZER).is_dir())


def load_prepared(folder: str | Path) -> PreparedCorpus:
    """The rows of a folder that ``hf-elm prepare`` finished; nothing is copied.

    Raises:
        ValueError: it is not finished, or a shard is missing or has another size than it was written with.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} is not finished (no {MANIFEST}); run the same `hf-elm prepare` again.") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / MANIFEST} is damaged ({error}); run the same `hf-elm prepare` again.") from None
    _check_manifest(folder / MANIFEST, manifest)
    rows = {part: _rows(folder, manifest["parts"][part]["shards"]) for part in PARTS}
    return PreparedCorpus(
        manifest["corpus"], rows["train"], rows["held_out"], manifest["settings"], str(folder / TOKENIZER)
    )


def _check_manifest(path: Path, manifest: Any) -> None:
    """Refuses a manifest that was edited or is of another program; shards are files below the folder."""
    try:
        shards = [shard for part in PARTS for shard in manifest["parts"][part]["shards"]]
        settings, name = manifest["settings"], manifest["corpus"]
        whole = isinstance(name, str) and all(isinstance(settings[key], dict) for key in ("data", "tokenizer"))
        whole = (
            whole and isinstance(settings["family"], str) and all(manifest["parts"][part]["shards"] for part in PARTS)
        )
        for shard in shards:
            inside = isinstance(shard["file"], str) and {*Path(shard["file"]).parts[:1]} <= {*PARTS}
            whole = whole and inside and ".." not in Path(shard["file"]).parts and "\0" not in shard["file"]
            whole = whole and isinstance(shard["size"], int) and isinstance(shard["rows"], int)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}); run the same `hf-elm prepare` again."
        ) from None
    if not whole:
        raise ValueError(
            f"{path} is damaged (a value of another kind than it was written with); run the same `hf-elm prepare` again."
        )


def _rows(folder: Path, shards: list[dict]) -> Dataset:
    for shard in shards:
        path = folder / shard["file"]
        size = path.stat().st_size if path.is_file() else None
        if size != shard["size"]:
            found = "is missing" if size is None else f"has {size} bytes instead of {shard['size']}"
            raise ValueError(f"{path} {found}; remove {folder / MANIFEST} and run the same `hf-elm prepare` again.")
    filled = [folder / shard["file"] for shard in shards if shard["rows"]]
    try:
        return concatenate_datasets([Dataset.from_file(str(path)) for path in filled])
    except Exception as error:  # whatever pyarrow makes of a file of the right size with other bytes
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{folder} has a damaged shard ({reason}); remove it and prepare the corpus again."
        ) from error
