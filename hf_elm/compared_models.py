"""Models that a comparison has scored, kept beside its output until all are done."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from .comparison_result import Column
from .document_scores import DocumentScores
from .document_totals import Estimate
from .model_fingerprint import file_states, sha256
from .partial_rows import PartialRows


Compared = tuple[DocumentScores, dict[str, Column], str]
_ESTIMATES = ("nats_per_token", "bits_per_byte")


def digest(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return sha256([json.dumps(value).encode()])


class ComparedModels:
    """The models that are done, in the folder ``<output>.partial``.

    Args:
        output: the comparison's file.
        checkpoints, texts, settings: what decides the numbers; an earlier call's models are taken where all are the same.

    Raises:
        FileExistsError: ``output`` is there, or the folder belongs to something else; the first difference is named.
    """

    def __init__(self, output: str | Path, checkpoints: list[str], texts: list[str], settings: dict[str, Any]):
        if Path(output).exists():
            raise FileExistsError(f"output={output} exists; choose another file or remove it first.")
        models = [{"checkpoint": each, "files": file_states(each)} for each in checkpoints]
        self._rows = PartialRows(Path(output), {"compared": models, "texts": digest(texts), **settings})
        self._done = list(self._rows.rows())

    def found(self, number: int) -> Compared | None:
        """Scores by document, columns without differences and the digest of the tokens of model ``number``; None: not done."""
        if number >= len(self._done):
            return None
        row = self._done[number]
        nll = {name: torch.tensor(values, dtype=torch.float64) for name, values in row["nll"].items()}
        scores = DocumentScores(torch.tensor(row["counts"]), torch.tensor(row["num_bytes"]), nll, row["num_unknown"])
        columns = {}
        for name, fields in row["columns"].items():
            estimates = {key: Estimate(**fields[key]) for key in _ESTIMATES}
            columns[name] = Column(**fields | estimates)
        return scores, columns, row["tokens"]

    def keep(self, scores: DocumentScores, columns: dict[str, Column], tokens: str) -> None:
        """Adds the next model for good."""
        plain = {name: dataclasses.asdict(column) for name, column in columns.items()}
        for name, column in columns.items():
            plain[name] |= {key: getattr(column, key)._asdict() for key in _ESTIMATES}
        row = {
            "counts": scores.counts.tolist(),
            "num_bytes": scores.num_bytes.tolist(),
            "num_unknown": scores.num_unknown,
        }
        row |= {"nll": {name: values.double().tolist() for name, values in scores.nll.items()}}
        self._rows.append([row | {"columns": plain, "tokens": tokens}])

    def remove(self) -> None:
        """Removes the folder, once the output is written."""
        shutil.rmtree(self._rows.folder, ignore_errors=True)
