"""Two kinds of samples told apart by their probabilities: a mixture of two Weibull distributions, fitted to log-probabilities.

If p is Weibull of shape k and scale l, y = log p has the density of a Gumbel minimum with location m = log l and scale s = 1/k,

    f(y) = exp(z - e^z) / s,    z = (y - m) / s

and memberships are the same for p and for log p. Sequences of hundreds of tokens have probabilities that no float holds; their
logarithms pose no problem, and the fit moves along when all of them are shifted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


SHARES = (0.2, 0.8)  # of a component, as in the authors' code
NARROWEST = 0.01  # smallest scale, in units of the range of the data: a component cannot collapse on one sample
STEPS, TOLERANCE, HALVINGS = 500, 1e-8, 50
FEWEST = 4  # samples, below which two components are not told apart


@dataclass
class WeibullMixture:
    """Two components, the one of the larger mean of p first.

    Attributes:
        shares, locations, scales: of log p, ``(2,)`` each, float64.
        log_likelihood: of the data, nats.
    """

    shares: Tensor
    locations: Tensor
    scales: Tensor
    log_likelihood: float

    def memberships(self, log_probs: Tensor) -> Tensor:
        """P(component | sample), ``(samples, 2)``."""
        parts = (each.numpy() for each in (log_probs.double(), self.shares, self.locations, self.scales))
        return torch.softmax(torch.from_numpy(_joint(*parts)), -1)


def fit_mixture(log_probs: Tensor) -> WeibullMixture:
    """Maximum likelihood by expectation-maximisation from the upper and the lower half of the data.

    Args:
        log_probs: log p of each sample, ``(samples,)``, nats.

    Raises:
        ValueError: fewer than 4 samples, all of them equal, or one that is not finite.
    """
    y = log_probs.double()
    spread = (y.max() - y.min()).item() if len(y) else 0.0
    if len(y) < FEWEST or not 0 < spread < math.inf:
        raise ValueError(f"a mixture needs at least {FEWEST} finite values that differ, got {y.tolist()[:8]}.")
    y = y.numpy()
    upper = 0.1 + 0.8 * (y.argsort().argsort() / (len(y) - 1) > 0.5)
    weights = np.stack([upper, 1 - upper], -1)
    before = -math.inf
    for _ in range(STEPS):
        shares = weights.mean(0).clip(*SHARES)
        shares = shares / shares.sum()
        locations, scales = _components(y, weights, NARROWEST * spread, spread)
        joint = _joint(y, shares, locations, scales)
        sums = np.logaddexp(*joint.T)
        weights = np.exp(joint - sums[:, None])
        if abs(sums.sum() - before) < TOLERANCE:
            break
        before = sums.sum()
    means = [m + math.lgamma(1 + s) for m, s in zip(locations, scales, strict=True)]  # log of l Gamma(1 + 1/k)
    order = np.argsort(means)[::-1]
    parts = (torch.from_numpy(each[order].copy()) for each in (shares, locations, scales))
    return WeibullMixture(*parts, float(sums.sum()))


def unlikely(log_probs: Tensor) -> Tensor:
    """Which samples are pruned, bool ``(samples,)``: more likely of the lower component, and p below the mean of p.

    Zhou et al. 2025, "A Theoretical Study on Bridging Internal Probability and Self-Consistency for LLM Reasoning" (reasoning
    pruning). The likeliest sample always stays; of fewer than 4 samples, or equal ones, all stay.
    """
    y = log_probs.double()
    if len(y) < FEWEST or not 0 < (y.max() - y.min()).item() < math.inf:
        return torch.zeros(len(y), dtype=torch.bool)
    lower = fit_mixture(y).memberships(y)[:, 1] > 0.5
    return lower & (y < y.logsumexp(0) - math.log(len(y)))


def _joint(y: np.ndarray, shares: np.ndarray, locations: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """log share + log density, ``(samples, 2)``."""
    z = (y[:, None] - locations) / scales
    return np.log(shares) + z - np.exp(np.minimum(z, 700.0)) - np.log(scales)


def _components(y: np.ndarray, weights: np.ndarray, narrowest: float, widest: float) -> tuple[np.ndarray, np.ndarray]:
    """Locations and scales of the weighted maximum-likelihood fits, ``(2,)`` each.

    The scale solves  sum w y e^(y/s) / sum w e^(y/s) - sum w y / sum w = s; the left side falls in s and the right side rises.
    """
    total, y = weights.sum(0), y[:, None]
    mean, highest = (weights * y).sum(0) / total, y.max()
    low, high = np.full(2, narrowest), np.full(2, widest)
    for _ in range(HALVINGS):
        scale = (low + high) / 2
        tilted = weights * np.exp((y - highest) / scale) + 1e-300
        above = (tilted * y).sum(0) / tilted.sum(0) - mean > scale
        low, high = np.where(above, scale, low), np.where(above, high, scale)
    tilted = weights * np.exp((y - highest) / scale) + 1e-300
    return highest + scale * np.log(tilted.sum(0) / total), scale
