"""How well scores tell machine texts from human ones: AUROC, intervals by source document, and the scores to beat."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .detection_features import TextFeatures


Interval = tuple[float, float]


class Auroc(NamedTuple):
    """An AUROC and its 95% interval; ``difference`` is the head's minus this one, paired by document."""

    value: float
    interval: Interval
    difference: float | None = None
    difference_interval: Interval | None = None


def auroc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Probability that a machine text (label 1) scores above a human one (label 0); a tie counts one half.

        A = sum_{i: 1, j: 0} w_i w_j ( [s_i > s_j] + [s_i = s_j] / 2 ) / (sum_i w_i sum_j w_j)

    (Mann & Whitney 1947).

    Raises:
        ValueError: texts of one kind only.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels).astype(bool)
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, dtype=np.float64)
    _, place = np.unique(scores, return_inverse=True)
    human = np.bincount(place, weights * ~labels)
    machine = np.bincount(place, weights * labels)
    if not human.sum() or not machine.sum():
        raise ValueError("an AUROC needs texts of both kinds; one is missing.")
    below = np.cumsum(human) - human
    return float((machine * (below + human / 2)).sum() / (human.sum() * machine.sum()))


def aurocs_by_document(
    scores: dict[str, np.ndarray], labels: np.ndarray, documents: list[str], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Auroc]:
    """The AUROC of every score, with percentile intervals from resampling source documents; the first is the head's.

    A document is drawn with all its texts, human and machine, since these share prompts, subject and style: texts of
    one document are not independent. All scores are resampled together, so that differences are paired.

    Args:
        documents: the source document of each text.
    """
    names, place = np.unique(documents, return_inverse=True)
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    values = {name: auroc(each, labels) for name, each in scores.items()}
    resampled = {name: np.array([auroc(each, labels, draw[place]) for draw in draws]) for name, each in scores.items()}
    first = next(iter(scores))
    found = {first: Auroc(values[first], _interval(resampled[first]))}
    for name in list(scores)[1:]:
        difference = _interval(resampled[first] - resampled[name])
        found[name] = Auroc(values[name], _interval(resampled[name]), values[first] - values[name], difference)
    return found


def _interval(values: np.ndarray) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Baseline:
    """A score without a trained network: ``score`` of a text's columns, each ``(tokens,)``.

    ``curvature`` is Fast-DetectGPT's (Bao et al. 2024), sum (log p - E log p) / sqrt(sum Var log p), with one model in
    both parts; ``perplexity/entropy`` is the score of Binoculars (Hans et al. 2024) likewise.
    """

    name: str
    needs: tuple[str, ...]
    score: Callable[[dict[str, Tensor]], Tensor]


def _curvature(c):
    return (c["log_prob"] + c["entropy"]).sum() / c["log_prob_std"].square().sum().clamp(min=1e-12).sqrt()


def _elm_gain(c):
    return (-c["energy"] - (c["log_z_lower"] + c["log_z_upper"]) / 2).mean()


_OF_DISTRIBUTION = (
    Baseline("mean perplexity", ("log_prob",), lambda c: c["log_prob"].mean()),
    Baseline("mean log rank", ("log_rank",), lambda c: c["log_rank"].mean()),
    Baseline("curvature", ("log_prob", "entropy", "log_prob_std"), _curvature),
    Baseline(
        "perplexity/entropy",
        ("log_prob", "entropy"),
        lambda c: c["log_prob"].sum() / c["entropy"].sum().clamp(min=1e-12),
    ),
)
_OF_ENERGY = (
    Baseline("mean energy", ("energy",), lambda c: c["energy"].mean()),
    Baseline("mean log p_ELM/p_LM", ("energy", "log_z_lower", "log_z_upper"), _elm_gain),
    Baseline(
        "mean ELM perplexity",
        ("log_prob", "energy", "log_z_lower", "log_z_upper"),
        lambda c: c["log_prob"].mean() + _elm_gain(c),
    ),
)
_OF_THINKING = (
    Baseline("mean energy before thinking", ("energy_s1",), lambda c: c["energy_s1"].mean()),
    Baseline("mean fall of the energy", ("energy_fall",), lambda c: c["energy_fall"].mean()),
    Baseline(
        "mean log p_s2/p_s1", ("log_prob_s1", "log_prob_s2"), lambda c: (c["log_prob_s2"] - c["log_prob_s1"]).mean()
    ),
)


def baseline_scores(texts: list[TextFeatures], columns: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Every baseline that the columns allow, of each text: name -> ``(texts,)``."""
    found: dict[str, list[float]] = {}
    for text in texts:
        named = dict(zip(columns, text.values.double().unbind(-1), strict=True))
        for name, value in _scores_of(named):
            found.setdefault(name, []).append(float(value))
    return {name: np.array(values) for name, values in found.items()}


def _scores_of(named: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for suffix, title in (("", ""), ("_s1", ", system 1"), ("_s2", ", system 2")):
        own = {
            name: named[name + suffix]
            for name in ("log_prob", "log_rank", "entropy", "log_prob_std")
            if name + suffix in named
        }
        for baseline in _OF_DISTRIBUTION:
            if set(baseline.needs) <= own.keys():
                yield baseline.name + title, baseline.score(own)
    for baseline in (*_OF_ENERGY, *_OF_THINKING):
        if set(baseline.needs) <= named.keys():
            yield baseline.name, baseline.score(named)


def oriented(scores: np.ndarray, labels: np.ndarray) -> float:
    """+1 or -1: the sign under which the score tells machine texts by being higher."""
    return 1.0 if auroc(scores, labels) >= 0.5 else -1.0


def labels_of(human: int, machine: int) -> Tensor:
    """0 for the human texts, then 1 for the machine texts."""
    return torch.cat([torch.zeros(human), torch.ones(machine)])
