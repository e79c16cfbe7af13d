"""Token features kept on disk, found again only for the same model, the same tokens and the same settings."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from .detection_features import FeatureExtractor, TextFeatures
from .model_fingerprint import sha256


TEXTS_PER_FILE = 64  # what an interruption loses at most


class FeatureCache:
    """Features of texts in files of `TEXTS_PER_FILE` texts each, named by a digest of all that decides their content.

    A changed model, text or setting has another digest: what is stale is never read. A file that cannot be read is
    computed anew.

    Args:
        folder: where the files are; created at the first write. None keeps nothing.
        extractor: computes what is missing.
        fingerprint: of the model, see `model_fingerprint`.
    """

    def __init__(self, folder: str | Path | None, extractor: FeatureExtractor, fingerprint: dict[str, str]):
        self.folder = None if folder is None else Path(folder)
        self.extractor = extractor
        self._settings = json.dumps([fingerprint, extractor.describe()], sort_keys=True)

    def features(
        self, rows: list[list[int]], done: Callable[[int], object] = lambda n: None
    ) -> Iterator[TextFeatures]:
        """Features of texts given as token ids, in order; ``done`` is told how many texts each step has finished."""
        for start in range(0, len(rows), TEXTS_PER_FILE):
            part = rows[start : start + TEXTS_PER_FILE]
            found = self._part(part)
            done(len(part))
            yield from found

    def path(self, rows: list[list[int]]) -> Path | None:
        """The file of these texts together."""
        if self.folder is None:
            return None
        return (
            self.folder / f"features-{sha256([self._settings.encode(), json.dumps(rows).encode()])[:32]}.safetensors"
        )

    def _part(self, rows):
        path = self.path(rows)
        if path is not None and path.is_file() and (found := self._read(path, rows)) is not None:
            return found
        found = self.extractor.extract(rows)
        if path is not None:
            _write(path, found)
        return found

    def _read(self, path, rows) -> list[TextFeatures] | None:
        try:
            tensors = load_file(path)
            values = tensors["values"].split([len(ids) - 1 for ids in rows])
        except (SafetensorError, OSError, KeyError, RuntimeError):
            return None
        if "states" not in tensors:
            return [TextFeatures(part) for part in values]
        states = tensors["states"].split([len(ids) - 1 for ids in rows])
        return [TextFeatures(*pair) for pair in zip(values, states, strict=True)]


def refuse_foreign(folder: Path) -> None:
    """Refuses a folder to be removed when all is done if it holds anything but features.

    Raises:
        FileExistsError: naming what is in the way.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(
            f"{folder} is in the way: features are kept in a folder of that name; move it elsewhere."
        )
    for path in sorted(folder.iterdir()):
        if not path.name.lstrip(".").startswith("features-"):
            raise FileExistsError(f"{folder} is in the way: it holds {path.name}, no features; move it elsewhere.")


def _write(path: Path, features: list[TextFeatures]) -> None:
    tensors = {"values": torch.cat([each.values for each in features])}
    if features[0].states is not None:
        tensors["states"] = torch.cat([each.states for each in features])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(save(tensors))
    os.replace(temporary, path)
