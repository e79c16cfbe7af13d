"""What ``hf-elm score`` does once its arguments are checked: score in parts, keep each, continue after an interruption."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from .document_scores import DocumentScorer
from .document_totals import ratio_estimate
from .embedding_inputs import EmbeddingInputs
from .model_comparison import load_causal
from .model_fingerprint import model_fingerprint, sha256
from .partial_rows import ROWS, PartialRows
from .run_folder import write_json
from .scored_tables import as_kind, kind_of, record_path, write_table
from .scoring import COUNTS, OPPOSITE, Row, make_scorer, score_columns, score_row
from .scoring_inputs import beginning
from .trained_windows import Window


BATCHES_PER_PART = 4  # of windows; what an interruption loses at most, or a single document
END_OF_PART = "end_of_part"


def score_inputs(
    inputs: EmbeddingInputs,
    output: Path,
    checkpoint: str,
    *,
    window: Window,
    tokens: bool = False,
    include_text: bool = True,
    document_bytes: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool = True,
    **scoring: Any,
) -> dict[str, Any]:
    """Writes the scores of ``inputs`` to ``output``, or continues the run that began to; its record, which is written beside it.

    Args:
        window: see `hf_elm.trained_windows`.
        document_bytes: score the first so many bytes of each document; 0 = all.
        tokens, scoring: of `hf_elm.scoring.score_texts`.

    Raises:
        FileExistsError: the rows that are there belong to other inputs or settings.
        ValueError: see `load_causal` and `make_scorer`.
    """
    model, tokenizer = load_causal(checkpoint, device, dtype)
    documents = DocumentScorer(make_scorer(model, **scoring), tokenizer, window.tokens)
    _refuse_names(inputs.kept, {"id", "text", *score_columns(documents.scorer, tokens)})
    texts = [beginning(text, document_bytes) for text in inputs.texts]
    settings = run_settings(inputs, texts, documents, tokens, model)
    partial = PartialScores(output, settings)
    if partial.done:
        sys.stderr.write(f"continuing after {partial.done} of {len(texts)} documents, from {partial.folder}\n")
    try:
        _fill(partial, documents, texts, tokens, progress)
    except KeyboardInterrupt:
        rest = f"{partial.done} of {len(texts)} documents are done and kept in {partial.folder}"
        sys.stderr.write(f"\n{rest}; the same command continues.\n")
        raise
    record = {
        "checkpoint": checkpoint,
        "window": documents.window,
        "window_origin": window.origin,
        "document_bytes": document_bytes or None,
        **totals(partial.rows()),
        "settings": settings,
    }
    partial.finish_table(inputs, include_text, score_columns(documents.scorer, tokens), record)
    return record


class PartialScores(PartialRows):
    """The rows that are done; parts of which not all rows were written do not count, so that the next ones are as they would be."""

    def _resume(self, settings) -> int:
        super()._resume(settings)
        path, place, end, done = self.folder / ROWS, 0, 0, 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                place += len(line)
                if json.loads(line)[END_OF_PART]:
                    end, done = place, number
        os.truncate(path, end)
        return done

    def append_part(self, rows: list[Row]) -> None:
        """Adds the rows of a part for good."""
        self.append(row | {END_OF_PART: i == len(rows)} for i, row in enumerate(rows, 1))

    def finish_table(
        self, inputs: EmbeddingInputs, include_text: bool, columns: dict[str, str], record: dict[str, Any]
    ) -> None:
        """Writes the table and the record beside it, and removes the folder.

        Raises:
            FileExistsError: the output has been made meanwhile.
        """
        own = {"id": inputs.ids} | ({"text": inputs.texts} if include_text else {}) | inputs.kept
        kinds = {name: kind_of(values) for name, values in own.items()}
        kinds["id"] = "int" if kinds["id"] == "int" else "text"
        own = {name: as_kind(values, kinds[name]) for name, values in own.items()}
        rows = ({name: values[i] for name, values in own.items()} | row for i, row in enumerate(self.rows()))
        finished = self.folder / f"finished{self.output.suffix}"
        write_table(finished, rows, kinds | columns)
        if self.output.exists():
            raise FileExistsError(f"output={self.output} has been made meanwhile; the table is in {finished}.")
        write_json(record_path(self.output), record)
        os.replace(finished, self.output)
        shutil.rmtree(self.folder, ignore_errors=True)


def run_settings(
    inputs: EmbeddingInputs, texts: list[str], documents: DocumentScorer, tokens: bool, model
) -> dict[str, Any]:
    """Whatever decides the scores, with digests in the place of texts and weights."""
    return {
        "documents": len(texts),
        "text_sha256": sha256(f"{len(text)}:{text}".encode("utf-8", "surrogatepass") for text in texts),
        "id_sha256": sha256(f"{key!r}\n".encode("utf-8", "surrogatepass") for key in inputs.ids),
        **model_fingerprint(model, documents.tokenizer),
        "window": documents.window,
        "tokens": tokens,
        "scoring": documents.scorer.describe() | {"scorer": type(documents.scorer).__name__},
    }


def totals(rows: Iterator[Row]) -> dict[str, Any]:
    """Sums of the counts, and means by token and byte with standard errors by document, of the rows that have scores."""
    counts = dict.fromkeys(COUNTS, 0)
    number = 0
    sums: dict[str, list[tuple[float, int, int]]] = {}
    for row in rows:
        number += 1
        for name in COUNTS:
            counts[name] += row[name]
        if row["num_tokens"] and row["num_bytes"]:
            for name in row:
                if name == "energy" or ("_log_prob" in name and not name.startswith("token_")):
                    sums.setdefault(name, []).append((row[name], row["num_tokens"], row["num_bytes"]))
    means: dict[str, dict[str, float | None]] = {}
    for name, values in sums.items():
        total, tokens, size = torch.tensor(values, dtype=torch.float64).T
        if name == "energy":
            means["energy_per_token"] = ratio_estimate(total, tokens)._asdict()
            continue
        base, end = name.split("_log_prob")
        end = OPPOSITE[end]
        means[f"{base}_nats_per_token{end}"] = ratio_estimate(-total, tokens)._asdict()
        means[f"{base}_bits_per_byte{end}"] = ratio_estimate(-total / math.log(2), size)._asdict()
    scored = len(next(iter(sums.values()), ()))
    return {"num_documents": number, "num_scored_documents": scored, **counts, "means": means}


def _refuse_names(kept, own: set[str]) -> None:
    """A kept column must not have the name of one that is written."""
    for name in kept:
        if name in own:
            raise ValueError(
                f"keep={name} has the name of a column of the scores; rename it in the table, or leave it out."
            )


def _fill(partial: PartialScores, documents: DocumentScorer, texts: list[str], tokens: bool, progress: bool) -> None:
    sizes = [len(text.encode("utf-8", errors="surrogatepass")) for text in texts]
    step = documents.window // 2 if documents.window else 512
    budget = BATCHES_PER_PART * documents.scorer.batch_size * max(1, step)
    done = sum(sizes[: partial.done])
    with tqdm(total=sum(sizes), initial=done, desc="Scoring", unit="B", unit_scale=True, disable=not progress) as bar:
        for first, ids in _parts(documents, texts, partial.done, budget):
            rates = [
                size / max(1, len(each) - 1) for size, each in zip(sizes[first : first + len(ids)], ids, strict=True)
            ]
            found = documents.scores(ids, lambda number, count, rates=rates: bar.update(rates[number] * count))
            partial.append_part([score_row(score, documents, tokens) for score in found])


def _parts(
    documents: DocumentScorer, texts: list[str], start: int, budget: int
) -> Iterator[tuple[int, list[list[int]]]]:
    """(number of the first document, token ids) of runs of about ``budget`` tokens; from an end of one on, the next are the same."""
    first, ids, room = start, [], budget
    for text in texts[start:]:
        ids.append(documents.token_ids(text))
        room -= max(1, len(ids[-1]))
        if room <= 0:
            yield first, ids
            first, ids, room = first + len(ids), [], budget
    if ids:
        yield first, ids
