"""What ``hf-elm detect`` does once its arguments are checked."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from .checkpoint_likelihood import corpus_part
from .detection import Detector, train_detector
from .detection_cache import refuse_foreign
from .detection_data import Sampling
from .detection_report import DetectionReport
from .embedding_inputs import EmbeddingInputs
from .run_folder import write_atomically
from .trained_windows import row_length
from .trainers.corpora import load_corpus
from .training_run import corpus_options


def judge_texts(
    inputs: EmbeddingInputs,
    output: str | None,
    detector: str,
    checkpoint: str | None = None,
    *,
    token_weights: bool = False,
    batch_size: int | None = None,
    device: str | None = None,
    progress: bool = True,
) -> None:
    """Writes one JSON line per text to ``output``, whole or not at all, or prints them (None).

    Features are kept in the folder ``<output>.partial`` until the output is there, so that an interrupted run is
    continued.

    Raises:
        FileExistsError: the output has been made meanwhile, or ``<output>.partial`` holds something else.
    """
    partial = None if output is None else Path(f"{output}.partial")
    if partial is not None:
        refuse_foreign(partial)
    judge = Detector.load(detector, checkpoint, device=device, cache=partial, batch_size=batch_size)
    lines = []
    with _kept_in(partial):
        for key, score in zip(inputs.ids, judge.score(inputs.texts, token_weights, progress), strict=True):
            line = json.dumps({"id": key, **score.to_dict()}, ensure_ascii=False)
            if output is None:
                sys.stdout.write(f"{line}\n")
            else:
                lines.append(line)
    if output is None:
        return
    if os.path.exists(output):
        raise FileExistsError(f"output={output} has been made meanwhile; the features are in {partial}.")
    write_atomically(output, "".join(f"{line}\n" for line in lines))
    shutil.rmtree(partial, ignore_errors=True)
    sys.stdout.write(f"{len(lines)} texts judged in {output}\n")


def train_on_corpus(
    checkpoint: str,
    output: str,
    data: dict[str, Any],
    part: str,
    split_seed: int,
    generator: str,
    also_test: str | None,
    sampling: dict[str, Any],
    **options,
) -> DetectionReport:
    """`train_detector` on ``part`` of the corpus that ``data`` describes.

    Args:
        split_seed: by which the run that wrote the model held out documents.
        generator, also_test: names of generators, see `Sampling.parse`, separated by commas.
        sampling: what those names do not say.

    Raises:
        ValueError: an unknown generator, or rows that hold no text, such as those of `hf-elm prepare`.
    """
    shared = {**sampling, "seed": options["seed"]}
    samplings = [Sampling.parse(name, **shared) for name in generator.split(",")]
    others = None if also_test is None else [Sampling.parse(name, **shared) for name in also_test.split(",") if name]
    rows = corpus_part(load_corpus(**corpus_options(data), seed=split_seed), part)
    texts = []
    for row in rows:
        if "text" not in row:
            raise ValueError(
                f"data.corpus={data['corpus']} holds token rows without their text; give the text itself."
            )
        texts.append(row["text"])
    if note := _beyond_rows(checkpoint, options["prompt_tokens"], options["document_tokens"]):
        sys.stderr.write(f"{note}\n")
    with _kept_in(options["cache"] or f"{output}.cache"):
        return train_detector(checkpoint, texts, output, samplings=samplings, also_test=others, **options)


def _beyond_rows(checkpoint: str, prompt_tokens: int, document_tokens: int) -> str | None:
    """A warning where texts go on beyond the rows that the model was trained on, where it may write and read worse."""
    rows = row_length(checkpoint)
    if rows is None or prompt_tokens + document_tokens <= rows:
        return None
    return (
        f"{checkpoint} was trained on rows of {rows} tokens; prompt_tokens={prompt_tokens} and document_tokens={document_tokens} "
        "go beyond them, where it may write and read otherwise. What is found holds for such texts."
    )


@contextlib.contextmanager
def _kept_in(folder: str | Path | None):
    """Says, when interrupted, where the work is from which the same command continues."""
    try:
        yield
    except KeyboardInterrupt:
        if folder is not None:
            sys.stderr.write(f"\nwhat has been drawn and read is kept in {folder}; the same command continues.\n")
        raise
