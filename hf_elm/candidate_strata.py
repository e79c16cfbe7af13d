"""Candidates for log Z at every position: the likeliest tokens, and samples of the LM from the remaining ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .modeling.monarc.candidate_sampling import sample_two_level


CHUNK_ELEMENTS = 1 << 22  # float64 entries of (positions, vocab) held at once: 32 MiB


@dataclass
class CandidateStrata:
    """Candidates of one row and what the LM says of them.

    Attributes:
        token_ids: the head (likeliest first), then the samples, ``(head + K, seq)``.
        head_log_probs: LM log-probabilities of the head, float64 ``(head, seq)``.
        log_tail_mass: log of the LM probability outside the head, float64 ``(seq,)``; -inf when the head is everything.
    """

    token_ids: Tensor
    head_log_probs: Tensor
    log_tail_mass: Tensor


def candidate_strata(logits: Tensor, exact_top: int, num_samples: int, generator: torch.Generator) -> CandidateStrata:
    """Head of ``exact_top`` tokens and ``num_samples`` independent draws from p_LM restricted to the rest.

    Positions are token-aligned: column t comes from the LM's distribution given the tokens before t, so column 0 is
    empty and filled with token 0.

    Args:
        logits: of the LM for one row, ``(seq, vocab)``; row t is the distribution of token t + 1.
        generator: source of the draws, on the logits' device. The result depends on the row and the generator alone.
    """
    vocab = logits.shape[-1]
    parts = [
        _strata_of_chunk(chunk, min(exact_top, vocab), num_samples, generator)
        for chunk in logits[:-1].split(max(1, CHUNK_ELEMENTS // vocab))
    ]
    empty = (
        logits.new_zeros(1, min(exact_top, vocab) + num_samples, dtype=torch.long),
        logits.new_zeros(1, min(exact_top, vocab), dtype=torch.float64),
        logits.new_zeros(1, dtype=torch.float64),
    )
    token_ids, head_log_probs, log_tail_mass = (torch.cat(column) for column in zip(empty, *parts, strict=True))
    return CandidateStrata(token_ids.T, head_log_probs.T, log_tail_mass)


def _strata_of_chunk(logits, exact_top, num_samples, generator):
    log_probs = torch.log_softmax(logits.double(), -1)  # (positions, vocab)
    head_log_probs, head = log_probs.topk(exact_top, -1)
    log_probs.scatter_(1, head, -torch.inf)
    log_tail_mass = torch.logsumexp(log_probs, -1)
    if not num_samples:
        return head, head_log_probs, log_tail_mass
    tail = torch.exp(
        log_probs - log_probs.amax(-1, keepdim=True)
    )  # unnormalised, largest 1: no underflow of a small tail
    tail[log_tail_mass == -torch.inf] = 1.0  # nothing is left to draw: any token, with weight P_tail = 0
    samples = sample_two_level(tail, num_samples, generator)
    return torch.cat([head, samples], 1), head_log_probs, log_tail_mass
