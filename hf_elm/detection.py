"""A detector of machine-made text for one model: trained on its own texts, saved, loaded and used.

train_detector("runs/first", texts, "runs/detector")          # texts: documents that the model was not trained on
Detector.load("runs/detector").score(["def main():\\n ..."])
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from .detection_cache import FeatureCache
from .detection_data import MachineTexts, Passage, Sampling, cut_passages, generators_of, split_documents
from .detection_features import FeatureExtractor
from .detection_head import AttentionWeightedHead, FeatureBatch, HeadConfig
from .detection_report import DetectionReport, HumanAndMachineTexts, measure_head
from .detection_texts import TextCodec
from .detection_training import fit_head
from .families import read_model_type
from .model_comparison import load_causal
from .model_fingerprint import model_fingerprint
from .run_folder import new_folder, require_empty, write_json


DETECTOR, REPORT = "detector.json", "report.json"
FEATURE_OPTIONS = {"method": "sampled", "num_samples": 16, "exact_top": 16, "max_rows": 64}


class DetectionModel:
    """A loaded model with all that reading texts by it needs.

    Args:
        checkpoint: folder or Hub id of a MonArc, nanoEBM or any other causal LM.
        cache: folder of features, see `FeatureCache`; None keeps none.
        options: of `FeatureExtractor`.
    """

    def __init__(self, checkpoint: str, device=None, dtype=None, cache: str | Path | None = None, **options):
        self.checkpoint, self.cache = checkpoint, cache
        self.model, tokenizer = load_causal(checkpoint, device, dtype)
        self.codec = TextCodec(tokenizer)
        self.fingerprint = model_fingerprint(self.model, tokenizer)
        self.options = {**FEATURE_OPTIONS, **options} if hasattr(self.model, "score_candidates") else options
        self.extractor = FeatureExtractor(self.model, **self.options)
        self.features = FeatureCache(cache, self.extractor, self.fingerprint)

    def describe(self) -> dict[str, Any]:
        """Which model this is, for the detector's record."""
        return {"checkpoint": self.checkpoint, "model_type": self.model.config.model_type, **self.fingerprint}

    def read(self, texts: list[str | None], title: str, progress: bool = True) -> list:
        """Features of each text, None where there is none."""
        rows = [self.codec.row(self.codec.encode(text)) for text in texts if text is not None]
        with tqdm(total=len(rows), desc=title, unit="text", disable=not progress) as bar:
            found = self.features.features(rows, bar.update)
            return [None if text is None else next(found) for text in texts]


@dataclass
class DetectionTexts:
    """Passages of documents with their sides of the split, and the features of their texts as they are asked for."""

    model: DetectionModel
    passages: list[Passage]
    sides: dict[str, list[int]]
    document_tokens: int
    progress: bool = True

    def side(self, name: str, sampling: Sampling) -> HumanAndMachineTexts:
        """Human and machine texts of one side."""
        passages = [self.passages[i] for i in self.sides[name]]
        return HumanAndMachineTexts.of(
            self.model.read([each.human for each in passages], f"human, {name}", self.progress),
            self.model.read(self._machine_texts(passages, sampling), f"{sampling.name}, {name}", self.progress),
            [each.document for each in passages],
        )

    def _machine_texts(self, passages: list[Passage], sampling: Sampling) -> list[str | None]:
        model = self.model
        writer = MachineTexts(model.cache, model.model, model.codec, model.fingerprint, self.document_tokens, sampling)
        title = f"drawing {sampling.name}"
        with tqdm(total=len(passages), desc=title, unit="text", disable=not self.progress, delay=1.0) as bar:
            return writer.texts(passages, bar.update)


def train_detector(
    checkpoint: str,
    texts: list[str],
    output: str | Path,
    *,
    samplings: list[Sampling] | None = None,
    also_test: list[Sampling] | None = None,
    documents: int = 0,
    passages: int = 24,
    document_tokens: int = 100,
    prompt_tokens: int = 64,
    hidden_states: bool = False,
    num_heads: int = 2,
    hidden_size: int = 32,
    epochs: int = 100,
    resamples: int = 1000,
    cache: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    seed: int = 0,
    progress: bool = True,
    **feature_options: Any,
) -> DetectionReport:
    """Draws machine texts, reads all texts by the model, fits the head, tests it and writes the folder ``output``.

    Interrupted, it continues from what is in ``cache`` when it is called in the same way again.

    Args:
        checkpoint: the model whose texts are to be told from human ones, and which reads them.
        texts: human documents that it was not trained on; they are split into train, validation and test by document.
        samplings: how the machine texts are drawn that it learns from and is tested on; None = by the LM at
            temperature 1.
        also_test: further generators to be tested on; None = the first one's other half, where the model has two.
        documents, passages, document_tokens, prompt_tokens: see `cut_passages`.
        hidden_states: let the weights depend on the model's last hidden states too.
        num_heads, hidden_size, epochs: see `HeadConfig` and `fit_head`.
        resamples: of the intervals.
        cache: folder of machine texts and features; None = ``output`` with ".cache" behind it.
        feature_options: of `FeatureExtractor`.

    Raises:
        FileExistsError: ``output`` exists.
        ValueError: too few documents, an option out of range, a generator that the model does not have.
    """
    require_empty(output, "output")
    samplings = samplings or [Sampling(seed=seed)]
    cache = Path(f"{output}.cache") if cache is None else Path(cache)
    model = DetectionModel(checkpoint, device, dtype, cache, hidden_states=hidden_states, **feature_options)
    tested = _tested(model.model, samplings, also_test)
    cut = {"documents": documents, "passages": passages, "prompt_tokens": prompt_tokens}
    found = cut_passages(texts, model.codec, document_tokens=document_tokens, seed=seed, **cut)
    data = DetectionTexts(model, found, split_documents(found, seed=seed), document_tokens, progress)
    head, report = _learnt(data, samplings, hidden_size, num_heads, epochs=epochs, seed=seed)
    for name, sampling in tested.items():
        report.tests.append(measure_head(head, name, data.side("test", sampling), resamples=resamples, seed=seed))
    record = {"model": model.describe(), "options": model.options, "document_tokens": document_tokens}
    record |= {"samplings": [asdict(sampling) for sampling in samplings], "cut": cut, "seed": seed}
    with new_folder(output, "output") as folder:
        head.save(folder)
        write_json(folder / REPORT, report.to_dict())
        write_json(folder / DETECTOR, record)
    return report


def _tested(model, samplings: list[Sampling], also_test: list[Sampling] | None) -> dict[str, Sampling]:
    """Every generator to be tested on, by name; one that the model does not have is refused."""
    if also_test is None:
        others = [name for name in generators_of(model) if name != samplings[0].generator]
        also_test = [replace(samplings[0], generator=name) for name in others]
    found = {sampling.name: sampling for sampling in [*samplings, *also_test]}
    for sampling in found.values():
        sampling.options(model)
    return found


def _learnt(
    data: DetectionTexts, samplings: list[Sampling], hidden_size: int, num_heads: int, *, epochs: int, seed: int
):
    """The head fitted to the texts of the generators, and the report of what it learnt from."""
    train, validation = (
        HumanAndMachineTexts.joined([data.side(name, sampling) for sampling in samplings])
        for name in ("train", "validation")
    )
    states = train.features[0].states if train.features else None
    config = HeadConfig(data.model.extractor.columns, 0 if states is None else states.shape[1], hidden_size, num_heads)
    head, fit = fit_head(
        train.features,
        torch.from_numpy(train.labels),
        validation.features,
        torch.from_numpy(validation.labels),
        config,
        epochs=epochs,
        seed=seed,
        progress=data.progress,
    )
    names = [sampling.name for sampling in samplings]
    counts = len(train.labels), len(validation.labels)
    return head, DetectionReport(names, data.document_tokens, *counts, best_epoch=fit.best_epoch)


@dataclass
class TextJudgement:
    """What a detector says of one text.

    Attributes:
        probability: that the text is machine-made, where half of all texts are; None for fewer than two tokens.
        logit: mean over the pieces of log(P / (1 - P)).
        tokens: of the text.
        pieces: probability of each piece of ``document_tokens`` tokens.
        token_weights: if asked for: of each piece, (token, its weight) pairs; a first token has no weight.
    """

    probability: float | None
    logit: float | None
    tokens: int
    pieces: list[float]
    token_weights: list[list[tuple[str, float]]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields that there are, ready for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "token_weights" or value is not None}


class Detector:
    """A saved detector with its model, see `Detector.load`."""

    def __init__(self, model: DetectionModel, head: AttentionWeightedHead, document_tokens: int):
        self.model, self.head, self.document_tokens = model, head, document_tokens

    @classmethod
    def load(
        cls,
        folder: str | Path,
        checkpoint: str | None = None,
        *,
        device: str | None = None,
        cache: str | Path | None = None,
        batch_size: int | None = None,
    ) -> Detector:
        """The detector in ``folder`` with the model that it was trained for.

        Args:
            checkpoint: where that model is now; None = where it was.
            cache: folder of features; None keeps none.

        Raises:
            FileNotFoundError: no detector, or no model where it was.
            ValueError: a damaged detector, or another model than it was trained for.
        """
        record = read_record(folder)
        head = AttentionWeightedHead.load(folder)
        wanted = record["model"]
        checkpoint = checkpoint or wanted["checkpoint"]
        options = dict(record["options"]) | ({} if batch_size is None else {"batch_size": batch_size})
        try:
            read_model_type(checkpoint)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error} (detector={folder} is for that model; say where it is by checkpoint=.)"
            ) from None
        model = DetectionModel(checkpoint, device, wanted["dtype"], cache, **options)
        differing = [name for name in model.fingerprint if model.fingerprint[name] != wanted.get(name)]
        if differing:
            name = differing[0]
            raise ValueError(
                f"detector={folder} is for another model than checkpoint={checkpoint}: {name} is "
                f"{str(wanted.get(name))[:12]} there and {model.fingerprint[name][:12]} here. Give the model that it "
                f"was trained for ({wanted['checkpoint']}) by checkpoint=, or train a detector for this one by "
                "`hf-elm detect train`."
            )
        return cls(model, head, record["document_tokens"])

    def score(
        self,
        texts: list[str],
        token_weights: bool = False,
        progress: bool = False,
    ) -> Iterator[TextJudgement]:
        """What the detector says of each text, in order.

        A text longer than the ``document_tokens`` of the training is read in pieces of that length, each by itself;
        its logit is their mean. A shorter one is read as it is: fewer tokens say less, and the probabilities of such
        texts are not calibrated.

        Args:
            token_weights: say how much each token weighs.
        """
        codec = self.model.codec
        known = [codec.known(text) for text in texts]
        pieces = [codec.pieces(ids, self.document_tokens) for ids in known]
        rows = [row for own in pieces for row in own]
        with tqdm(total=len(rows), desc="Reading", unit="piece", disable=not progress, delay=1.0) as bar:
            features = self.model.features.features(rows, bar.update)
            for ids, own in zip(known, pieces, strict=True):
                if own:
                    yield self._score(own, len(ids), FeatureBatch.of([next(features) for _ in own]), token_weights)
                else:
                    yield TextJudgement(None, None, len(ids), [], [] if token_weights else None)

    @torch.no_grad()
    def _score(self, rows: list[list[int]], tokens: int, batch: FeatureBatch, token_weights: bool) -> TextJudgement:
        logits = self.head(batch.values, batch.mask, batch.states).double()
        mean = logits.mean()
        weighed = None
        if token_weights:
            weights = self.head.token_weights(batch.values, batch.mask, batch.states)
            decode = self.model.codec.decode
            weighed = [
                [
                    (decode([token]), round(weight, 6))
                    for token, weight in zip(row[1:], own[: len(row) - 1], strict=True)
                ]
                for row, own in zip(rows, weights.tolist(), strict=True)
            ]
        return TextJudgement(mean.sigmoid().item(), mean.item(), tokens, logits.sigmoid().tolist(), weighed)


def read_record(folder: str | Path) -> dict[str, Any]:
    """The record detector.json of a detector's folder.

    Raises:
        FileNotFoundError, ValueError: no detector there, or a damaged one.
    """
    path = Path(folder) / DETECTOR
    if not path.is_file():
        raise FileNotFoundError(f"detector={folder} has no {DETECTOR}; train one with `hf-elm detect train`.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if {"model", "options", "document_tokens"} <= record.keys():
            return record
    except (ValueError, AttributeError) as error:
        sys.stderr.write(f"{path}: {error}\n")
    raise ValueError(f"detector={folder} is damaged: {path} is no detector's record; train it anew.")
