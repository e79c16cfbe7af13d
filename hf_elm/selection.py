"""Sampling without replacement in proportion to exp(score / temperature), by strata where asked: quality-based selection.

    p(i first) = exp(s_i / tau) / sum_j exp(s_j / tau),  then likewise among those that are left            (Plackett-Luce)

is the law of the order of s_i / tau + g_i with independent standard Gumbel g_i (Yellott 1977; "Gumbel top-k"). tau -> 0 takes the
best, tau -> infinity is uniform. Selection of pretraining text so: Wettig et al. 2024, "QuRating", section 3.3, with standardised
scores. Sign: a larger score is likelier to be taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass
class Selection:
    """What was taken.

    Attributes:
        indices: places of the chosen ones, in the order of the draw: the first n of them are a draw of n.
        probabilities: of each, to be drawn first in its stratum.
        inclusion_probabilities: of each, to have a key above the largest one left out of its stratum, given that one:
            1 - exp(-exp(s/tau - kappa)), and 1 at temperature 0. Divided by it, a sum over the chosen estimates the sum over all
            without bias where the number of the chosen of each stratum is fixed and at least 1 (Kool et al. 2019, "Stochastic
            Beams and Where to Find Them", section 4.1); with a budget of tokens or bytes, nearly; not at temperature 0.
        num_eligible: how many could have been taken.
    """

    indices: np.ndarray
    probabilities: np.ndarray
    inclusion_probabilities: np.ndarray
    num_eligible: int


def select(
    scores: Sequence[float | None] | np.ndarray,
    *,
    count: int | None = None,
    fraction: float | None = None,
    budget: float | None = None,
    sizes: Sequence[float] | np.ndarray | None = None,
    temperature: float = 1.0,
    standardize: bool = True,
    strata: Sequence | np.ndarray | None = None,
    seed: int = 0,
) -> Selection:
    """Draws from the scores that are numbers; exactly one of ``count``, ``fraction`` and ``budget`` says how many.

    Args:
        scores: larger is likelier to be taken; None, NaN and infinities are never taken.
        count: so many; all where there are fewer.
        fraction: this share of those that can be taken, in (0, 1).
        budget: in the order of the draw, until the next one would take the sum of ``sizes`` above it.
        temperature: 0 takes the best (of equal ones a random choice), infinity draws uniformly.
        standardize: divide the scores by their standard deviation.
        strata: a value for each; the draw is by softmax within each stratum, and every beginning of the order has of each stratum
            its share of the whole (in documents, or in ``sizes`` with ``budget``) to the nearest document.

    Raises:
        ValueError: an argument out of range, nothing to take, a budget below the size of the first document.
    """
    values = np.array([math.nan if score is None else score for score in scores], dtype=np.float64)
    _check(values, count, fraction, budget, sizes, temperature, strata)
    eligible = np.flatnonzero(np.isfinite(values))
    if not len(eligible):
        raise ValueError("none of the scores is a finite number; there is nothing to select.")
    values = values[eligible]
    if standardize and (spread := values.std()) > 0:
        values = (values - values.mean()) / spread
    weights = np.ones(len(eligible)) if budget is None else np.asarray(sizes, dtype=np.float64)[eligible]
    groups = np.zeros(len(eligible), dtype=np.int64)
    if strata is not None:
        names = [repr(strata[i]) for i in eligible]
        groups = np.unique(names, return_inverse=True)[1]
    generator = np.random.default_rng(seed)
    logits, keys = _keys(values, temperature, generator)
    order = _interleaved(keys, groups, weights, generator)
    number = _number(order, weights, count, fraction, budget)
    chosen = order[:number]
    first, inclusion = _probabilities(logits, keys, groups, chosen, temperature)
    return Selection(eligible[chosen], first, inclusion, len(eligible))


def _check(values, count, fraction, budget, sizes, temperature, strata) -> None:
    given = {
        name: value
        for name, value in (("count", count), ("fraction", fraction), ("budget", budget))
        if value is not None
    }
    if len(given) != 1:
        raise ValueError(f"give one of count, fraction and budget, got {', '.join(given) or 'none'}.")
    if count is not None and count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    if fraction is not None and not 0 < fraction < 1:
        raise ValueError(f"fraction must lie strictly between 0 and 1, got {fraction}.")
    if budget is not None and (budget <= 0 or sizes is None):
        raise ValueError(f"budget must be above 0 and come with sizes, got {budget}.")
    if not temperature >= 0:
        raise ValueError(f"temperature must be 0 (the best), positive, or infinite (uniform), got {temperature}.")
    for name, column in (("sizes", sizes), ("strata", strata)):
        if column is not None and len(column) != len(values):
            raise ValueError(f"{name} must have an entry for each of {len(values)} scores, got {len(column)}.")


def _keys(values, temperature, generator) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the draw and the keys whose order it is; at temperature 0 the keys are ranks with ties broken at random."""
    gumbel = generator.gumbel(size=len(values))
    if temperature == 0:
        keys = np.empty(len(values))
        keys[np.lexsort((gumbel, values))] = np.arange(len(values))
        return values, keys
    logits = np.zeros(len(values)) if math.isinf(temperature) else values / temperature
    return logits, logits + gumbel


def _interleaved(keys, groups, weights, generator) -> np.ndarray:
    """The order of the draw: by key within each stratum, and among strata by the share of the stratum that has come before.

    With a document's middle at u = (weight before it + half of its own) / weight of the stratum, the order of u gives every
    stratum its share of any beginning, as Webster's method gives parties their seats. Equal u: a random order of the strata.
    """
    order = np.lexsort((-keys, groups))
    totals = np.bincount(groups, weights)
    before = np.cumsum(weights[order]) - weights[order]
    starts = np.cumsum(totals) - totals
    middle = (before - starts[groups[order]] + weights[order] / 2) / np.maximum(
        totals[groups[order]], np.finfo(float).tiny
    )
    if len(totals) == 1:
        return order
    turn = generator.permutation(len(totals))
    return order[np.lexsort((turn[groups[order]], middle.round(12)))]


def _number(order, weights, count, fraction, budget) -> int:
    if count is not None:
        return min(count, len(order))
    if fraction is not None:
        return max(1, round(fraction * len(order)))
    number = int(np.searchsorted(np.cumsum(weights[order]), budget * (1 + 1e-12), side="right"))
    if not number:
        raise ValueError(
            f"the first document of the draw has a size of {weights[order[0]]:,.0f}, more than the {budget:,.0f} asked for; raise it."
        )
    return number


def _probabilities(logits, keys, groups, chosen, temperature) -> tuple[np.ndarray, np.ndarray]:
    """Of the chosen: p(first in its stratum), and the probability of a key above the largest one left out."""
    first, inclusion = np.zeros(len(logits)), np.ones(len(logits))
    left = np.ones(len(logits), dtype=bool)
    left[chosen] = False
    for group in range(groups.max() + 1):
        members = groups == group
        shifted = logits[members] - logits[members].max()
        weights = (shifted == 0).astype(float) if temperature == 0 else np.exp(shifted)
        first[members] = weights / weights.sum()
        if temperature > 0 and (members & left).any():
            kappa = keys[members & left].max()
            inclusion[members] = -np.expm1(-np.exp(np.minimum(logits[members] - kappa, 700.0)))
    return first[chosen], inclusion[chosen]
