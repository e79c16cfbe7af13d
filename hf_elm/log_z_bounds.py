"""Bounds and estimates of the log normaliser of a residual energy model, in nats.

    p_ELM(x) = p_LM(x) exp(-E(x)) / Z,    Z = E_{y~p_LM}[exp(-E(y))]

Z is a sum over the vocabulary. Where that sum is too long it is bounded from K independent samples of the LM, or
from a *head* of tokens summed exactly plus samples of the remaining *tail*:

    Z = Z_head + P_tail E_{y~p_tail}[exp(-E(y))],    p_tail = p_LM restricted to the tail and renormalised

Each sample gives one unbiased estimate z_k = Z_head + P_tail exp(-E_k) of Z (z_k = exp(-E_k) without a head), so
every bound here holds with and without one. "In expectation" means over the draw of the samples, at every K: a
single value may lie on the other side, the mean over many positions is what is bounded. A lower bound on log Z is a
lower bound on the NLL of p_ELM, an upper bound an upper one, since NLL_ELM = NLL_LM + E + log Z.

Shapes: the last axis is the vocabulary, the head or the samples; leading axes are free and kept. Everything is
computed in log space in float64. Energies: lower is likelier.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class HeadStratum(NamedTuple):
    """The part of Z that is summed exactly: log Z_head and log P_tail, each of shape ``(...)``."""

    log_z: Tensor
    log_tail_mass: Tensor


def exact_log_z(log_probs: Tensor, energies: Tensor) -> Tensor:
    """log Z = log sum_y p_LM(y) exp(-E(y)), exact; both arguments ``(..., vocab)`` -> ``(...)``."""
    return torch.logsumexp(log_probs.double() - energies.double(), dim=-1)


def head_stratum(log_probs: Tensor, energies: Tensor, log_tail_mass: Tensor) -> HeadStratum:
    """Sum the head exactly: log Z_head = log sum_{y in head} p_LM(y) exp(-E(y)).

    log_probs and energies are ``(..., head)``; log_tail_mass ``(...)`` is log P_tail, -inf when the head is the whole
    vocabulary (every bound is then log Z itself).
    """
    return HeadStratum(exact_log_z(log_probs, energies), log_tail_mass.double())


def log_weights(energies: Tensor, head: HeadStratum | None = None) -> Tensor:
    """log z_k, with z_k an unbiased estimate of Z from sample k; ``(..., K)`` -> ``(..., K)``.

    z_k = exp(-E_k), or Z_head + P_tail exp(-E_k) when the samples come from the tail of ``head``
    """
    minus_energies = -energies.double()
    if head is None:
        return minus_energies
    return torch.logaddexp(head.log_z.unsqueeze(-1), head.log_tail_mass.unsqueeze(-1) + minus_energies)


def jensen_lower(energies: Tensor, head: HeadStratum | None = None) -> Tensor:
    """Lower bound on log Z, in expectation, at every K >= 1; ``(..., K)`` -> ``(...)``.

    L_K = log mean_k z_k,    E[L_K] <= E[L_{K+1}] <= log Z       (Jensen; Burda et al. 2016, Theorem 1)
    """
    return _log_mean(log_weights(energies, head))


def fenchel_upper(energies: Tensor, log_pilot: Tensor, head: HeadStratum | None = None) -> Tensor:
    """Upper bound on log Z, in expectation, at every K >= 1, from any pilot value a > 0; ``(..., K)`` -> ``(...)``.

        log Z <= Z/a - 1 + log a   (the logarithm lies below its tangent at a),    U = mean_k z_k / a - 1 + log a

    ``log_pilot`` ``(...)`` must not depend on these samples; with it fixed the expectation of U is the tangent
    exactly, so equality holds at a = Z. At a = 1 this is Z - 1, the bound that the training loss minimises.
    """
    log_pilot = log_pilot.double()
    return torch.exp(jensen_lower(energies, head) - log_pilot) - 1.0 + log_pilot


def fenchel_split_upper(energies: Tensor, head: HeadStratum | None = None) -> Tensor:
    """Upper bound on log Z, in expectation, at every K >= 2; ``(..., K)`` -> ``(...)``.

        U = z_B / a - 1 + log a,    a = mean over half A, z_B = mean over half B, averaged with A and B exchanged

    The two halves are independent, so given A the expectation of U is the tangent bound at a. An odd K splits as
    floor(K/2) and the rest.
    """
    _require_two_samples(energies, "fenchel_split_upper")
    half = energies.shape[-1] // 2
    log_a, log_b = jensen_lower(energies[..., :half], head), jensen_lower(energies[..., half:], head)
    return 0.5 * (_tangent(log_b, log_a) + _tangent(log_a, log_b))


def fenchel_leave_one_out_upper(energies: Tensor, head: HeadStratum | None = None) -> Tensor:
    """Upper bound on log Z, in expectation, at every K >= 2, about half as loose as the split; ``(..., K)`` -> ``(...)``.

        U = mean_i [ z_i / a_i - 1 + log a_i ],    a_i = mean of all z_j but z_i

    Sample i is independent of a_i, so each term is valid by itself. To first order the excess is Var(z)/(2 Z^2 (K-1)),
    where the split has Var(z)/(Z^2 K) and the Jensen bound falls short by Var(z)/(2 Z^2 K).
    """
    _require_two_samples(energies, "fenchel_leave_one_out_upper")
    weights = log_weights(energies, head)
    return _tangent(weights, _leave_one_out_log_mean(weights)).mean(-1)


def certified_interval(head: HeadStratum, energy_bound: float) -> tuple[Tensor, Tensor]:
    """Deterministic bounds on log Z from the head alone when |E| <= b everywhere; ``(...)`` each.

        log(Z_head + P_tail e^{-b}) <= log Z <= log(Z_head + P_tail e^b)

    No sampling and no expectation: both hold at every position.
    """
    if not energy_bound > 0:
        raise ValueError(f"certified_interval needs energy_bound > 0, got {energy_bound!r}: |E| must be bounded.")
    lower = torch.logaddexp(head.log_z, head.log_tail_mass - energy_bound)
    return lower, torch.logaddexp(head.log_z, head.log_tail_mass + energy_bound)


def jackknife_log_z(energies: Tensor, head: HeadStratum | None = None) -> Tensor:
    """APPROXIMATE log Z with the 1/K bias removed, K >= 2; bounds nothing; ``(..., K)`` -> ``(...)``.

    K L_K - (K-1) mean_i L_{-i},    L_{-i} = log mean of all z_j but z_i           (Quenouille's jackknife)
    """
    full, without_one = _jackknife_terms(energies, head, "jackknife_log_z")
    count = energies.shape[-1]
    return count * full - (count - 1) * without_one


def jackknife_upper(energies: Tensor, head: HeadStratum | None = None) -> Tensor:
    """APPROXIMATE upper bound on log Z, K >= 2; ``(..., K)`` -> ``(...)``.

        (2K-1) L_K - 2(K-1) mean_i L_{-i}                                    (Deng et al. 2020, arXiv:2004.11714)

    It turns the leading bias -a/K of L_K into +a/K and so is above log Z only once K is large enough for that term to
    lead: with heavy-tailed exp(-E) it lies below log Z. Offered for comparison with published numbers.
    """
    full, without_one = _jackknife_terms(energies, head, "jackknife_upper")
    count = energies.shape[-1]
    return (2 * count - 1) * full - 2 * (count - 1) * without_one


def effective_sample_fraction(log_z: Tensor, log_second_moment: Tensor) -> Tensor:
    """Fraction of LM samples that an importance weight exp(-E) leaves effective, in (0, 1]; ``(...)`` -> ``(...)``.

        Z^2 / E_{y~p_LM}[exp(-2 E(y))]  =  1 / (1 + chi^2(p_ELM || p_LM))                    (Kong 1992)

    ``log_second_moment`` is ``log_second_moment(...)`` or, over the whole vocabulary, ``exact_log_z(log_probs, 2 E)``.
    Exact given exact moments; with sampled ones the usual plug-in value, optimistic when few samples carry Z.
    """
    return torch.exp(2.0 * log_z.double() - log_second_moment.double()).clamp(max=1.0)


def log_second_moment(
    energies: Tensor, head_log_probs: Tensor | None = None, head_energies: Tensor | None = None, log_tail_mass=None
) -> Tensor:
    """log of an unbiased estimate of E_{y~p_LM}[exp(-2 E(y))], with or without a head; ``(..., K)`` -> ``(...)``."""
    if head_log_probs is None:
        return _log_mean(-2.0 * energies.double())
    head = head_stratum(head_log_probs, 2.0 * head_energies.double(), log_tail_mass)
    return jensen_lower(2.0 * energies.double(), head)


def _log_mean(log_values: Tensor) -> Tensor:
    return torch.logsumexp(log_values, dim=-1) - math.log(log_values.shape[-1])


def _tangent(log_z: Tensor, log_at: Tensor) -> Tensor:
    """z/a - 1 + log a, the tangent of the logarithm at a, evaluated at z."""
    return torch.exp(log_z - log_at) - 1.0 + log_at


def _leave_one_out_log_mean(log_values: Tensor) -> Tensor:
    """log mean of all but entry i, for every i, without subtracting (no cancellation); ``(..., K)`` -> ``(..., K)``."""
    empty = torch.full_like(log_values[..., :1], -torch.inf)
    before = torch.cat([empty, torch.logcumsumexp(log_values, -1)[..., :-1]], -1)
    after = torch.cat([empty, torch.logcumsumexp(log_values.flip(-1), -1)[..., :-1]], -1).flip(-1)
    return torch.logaddexp(before, after) - math.log(log_values.shape[-1] - 1)


def _jackknife_terms(energies: Tensor, head: HeadStratum | None, name: str) -> tuple[Tensor, Tensor]:
    _require_two_samples(energies, name)
    weights = log_weights(energies, head)
    return _log_mean(weights), _leave_one_out_log_mean(weights).mean(-1)


def _require_two_samples(energies: Tensor, name: str) -> None:
    if energies.shape[-1] < 2:
        raise ValueError(
            f"{name} needs at least 2 samples on the last axis of energies, got shape {tuple(energies.shape)}: "
            "draw more, or use jensen_lower or certified_interval."
        )
