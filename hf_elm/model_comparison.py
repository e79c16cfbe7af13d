"""Several models on the same documents: likelihoods, paired differences and what the models cost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from .compared_models import ComparedModels, digest
from .comparison_result import Column, ModelComparison
from .continuation_scores import EnergyScorer, scorer_of
from .document_scores import DocumentScores, score_documents
from .document_totals import Estimate, ratio_estimate
from .families import FAMILIES, read_model_type
from .saved_models import load_checkpoint, load_tokenizer, pick_device
from .scoring_inputs import beginning
from .spent_compute import spent_compute
from .trained_windows import common_window


def compare_models(
    checkpoints: list[str],
    texts: list[str],
    *,
    names: list[str] | None = None,
    baseline: str | None = None,
    window: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool = True,
    output: str | Path | None = None,
    **scoring: Any,
) -> ModelComparison:
    """Every distribution of every model on ``texts``, one model in memory at a time.

    A MonArc model has the columns lm and elm (and, where Z is not summed whole, the ends of its interval), a nanoEBM s1 and s2, any
    other causal LM lm. Differences are ``column - baseline``, negative where the column is better, paired by document:
    in nats/token where both tokenize every document alike, in bits/byte in any case.

    Args:
        checkpoints: folders or Hub ids.
        names: short names of the models; None = a, b, c, ...
        baseline: ``"name:column"``; None = the first column.
        window: tokens that a model sees at once, see `score_documents`; the same for all, so that they have the same contexts.
            None = the smallest of the row lengths that they were trained with, see `hf_elm.trained_windows`.
        output: new JSON file for the result. Models that are done are kept beside it, in ``<output>.partial``, so that the same call
            goes on after an interruption.
        scoring: ``batch_size``, ``think_steps``, and of MonArc ``method``, ``num_samples``, ``exact_top``, ``max_rows``, ``seed``.

    Raises:
        FileExistsError: ``output`` exists, or an interrupted comparison of other models, texts or settings is beside it.
        ValueError: fewer than two texts or no model, a checkpoint that cannot be loaded, an unknown baseline.
    """
    if not checkpoints or len(texts) < 2:
        raise ValueError(f"compare needs a model and at least 2 documents, got {len(checkpoints)} and {len(texts)}.")
    names = names or [_letter(i) for i in range(len(checkpoints))]
    window, origin = common_window(checkpoints, window)
    settings = {"window": window, "dtype": dtype, **scoring}
    done = ComparedModels(output, checkpoints, texts, settings) if output else None
    loaded: dict[str, DocumentScores] = {}
    columns: dict[str, Column] = {}
    vocabularies: dict[str, str] = {}
    for number, (name, checkpoint) in enumerate(zip(names, checkpoints, strict=True)):
        found = done and done.found(number)
        if not found:
            model, tokenizer = load_causal(checkpoint, device, dtype)
            scorer = scorer_of(model, **_fitting(model, scoring))
            scores = score_documents(scorer, tokenizer, texts, window, progress)
            ids = [tokenizer(text, verbose=False)["input_ids"] for text in texts]
            found = scores, {each: _column(model, scorer, each, scores) for each in scores.nll}, digest(ids)
            del model, scorer
            if done:
                done.keep(*found)
        loaded[name], own_columns, vocabularies[name] = found
        columns |= {f"{name}:{each}": column for each, column in own_columns.items()}
    first = baseline or next(iter(columns))
    if first not in columns:
        raise ValueError(f'baseline must be one of {", ".join(columns)}, got "{first}".')
    own = first.split(":")[0]
    alike = {name: vocabularies[name] == vocabularies[own] and _same_counts(loaded, name, own) for name in names}
    for label, column in columns.items():
        if label != first:
            _add_differences(column, label, first, loaded, alike[label.split(":")[0]])
    result = ModelComparison(
        columns=columns,
        checkpoints=dict(zip(names, checkpoints, strict=True)),
        baseline=first,
        num_documents=len(texts),
        num_bytes=sum(len(text.encode("utf-8", errors="surrogatepass")) for text in texts),
        same_tokens=alike,
        window=window,
        window_origin=origin,
        compute={name: spent_compute(checkpoint) for name, checkpoint in zip(names, checkpoints, strict=True)},
    )
    if done:
        result.to_json(output)
        done.remove()
    return result


def load_causal(checkpoint: str, device: str | None = None, dtype: str | None = None):
    """A MonArc, nanoEBM or any other causal LM with its tokenizer, in evaluation mode.

    Raises:
        FileNotFoundError, ValueError: nothing there, an encoder, damaged weights.
    """
    kind = read_model_type(checkpoint)
    if kind in FAMILIES:
        if FAMILIES[kind].generation is None:
            raise ValueError(f"{checkpoint} holds a {kind} model, an encoder; a causal model is needed.")
        return load_checkpoint(checkpoint, device, dtype)
    options = {} if dtype is None else {"dtype": getattr(torch, dtype)}
    try:
        model = AutoModelForCausalLM.from_pretrained(checkpoint, use_safetensors=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{checkpoint} cannot be loaded as a causal LM: {error}") from error
    return model.to(pick_device(device)).eval(), load_tokenizer(checkpoint, "checkpoint")


def ratio_difference(sums: Tensor, counts: Tensor, base_sums: Tensor, base_counts: Tensor) -> Estimate:
    """Difference of two means per unit over the same documents, and its standard error.

        d = R - R_0,    SE^2 = D/(D-1) sum_d [ (S_d - R n_d)/n - (S0_d - R_0 n0_d)/n0 ]^2

    with R = sum S / sum n; of equal units it is `ratio_estimate` of the difference (Cochran 1977, sec. 6.14).
    """
    if torch.equal(counts, base_counts):
        return ratio_estimate(sums - base_sums, counts)
    parts = []
    for total, units in ((sums, counts), (base_sums, base_counts)):
        total, units = total.double(), units.double()
        ratio = total.sum() / units.sum()
        parts.append((ratio, (total - ratio * units) / units.sum()))
    (ratio, residual), (base, base_residual) = parts
    documents = len(counts)
    variance = documents / (documents - 1) * (residual - base_residual).square().sum()
    return Estimate((ratio - base).item(), variance.sqrt().item())


def chosen_documents(texts: Iterable[str], documents: int, document_bytes: int, seed: int) -> list[str]:
    """``documents`` of the texts (0 = all) in an order of ``seed``, each cut to ``document_bytes`` UTF-8 bytes (0 = whole).

    Raises:
        ValueError: fewer than two documents with visible text.
    """
    texts = list(texts)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    cut = []
    for index in order:
        text = beginning(texts[index], document_bytes)
        if len(text.strip()) > 1:
            cut.append(text)
        if documents and len(cut) == documents:
            break
    if len(cut) < 2:
        raise ValueError(f"the text has {len(cut)} documents; standard errors by document need at least 2.")
    return cut


def _letter(index):
    return chr(ord("a") + index) if index < 26 else f"m{index + 1}"


def _fitting(model, scoring) -> dict[str, Any]:
    """The scoring options that concern this kind of model."""
    shared = {name: scoring[name] for name in ("batch_size", "think_steps") if name in scoring}
    if not hasattr(model, "score_candidates"):
        return shared
    return scoring | shared


def _column(model, scorer, column, scores: DocumentScores) -> Column:
    inner = model.lm if isinstance(scorer, EnergyScorer) and column == "lm" else model
    bits = scores.nll[column] / math.log(2)
    return Column(
        nats_per_token=ratio_estimate(scores.nll[column], scores.counts),
        bits_per_byte=ratio_estimate(bits, scores.num_bytes),
        num_tokens=int(scores.counts.sum()),
        num_unknown_tokens=scores.num_unknown,
        parameters=sum(parameter.numel() for parameter in inner.parameters()),
        scoring=scorer.describe(),
    )


def _same_counts(loaded, name, other):
    return torch.equal(loaded[name].counts, loaded[other].counts)


def _add_differences(column: Column, label, first, loaded, alike) -> None:
    (name, own), (base, other) = label.split(":"), first.split(":")
    scores, reference = loaded[name], loaded[base]
    if alike:
        column.nats_difference = ratio_difference(
            scores.nll[own], scores.counts, reference.nll[other], reference.counts
        )
    nats = ratio_difference(scores.nll[own], scores.num_bytes, reference.nll[other], reference.num_bytes)
    column.bits_difference = Estimate(
        nats.value / math.log(2), None if nats.standard_error is None else nats.standard_error / math.log(2)
    )
