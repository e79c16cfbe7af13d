"""The candidates of one decoding step: drawn from the processed distribution, repeated draws merged, one of them chosen."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .candidate_sampling import sample_two_level


@dataclass
class CandidateSet:
    """Distinct candidates of one step.

    Attributes:
        tokens: ``(batch, width)``, width being the largest number of distinct candidates in a row.
        log_weights: log of the multiplicity (mode "sample") or the processed score of each, ``(batch, width)``; -inf marks
            the padding of shorter rows, where ``tokens`` repeats the first candidate.
    """

    tokens: Tensor
    log_weights: Tensor

    def counts(self) -> Tensor:
        """Number of distinct candidates per row, ``(batch, 1)``."""
        return (self.log_weights > -torch.inf).sum(1, keepdim=True)


def draw_candidates(
    scores: Tensor, num_candidates: int, mode: str, finished: Tensor | None = None, pad_token: Tensor | None = None
) -> CandidateSet:
    """The distinct candidates of one step, in as few columns as the rows of the batch need.

    Args:
        scores: processed logits, ``(batch, vocab)``.
        mode: ``"sample"``: draws from softmax(scores) with replacement; ``"topk"``: the highest scores.
        finished: rows whose only candidate is ``pad_token``, boolean ``(batch,)``.
    """
    if mode == "sample":
        tokens, log_weights = _collapse(sample_two_level(torch.softmax(scores, -1), num_candidates))
    else:
        log_weights, tokens = scores.topk(min(num_candidates, scores.shape[-1]))
    if finished is not None:
        tokens = torch.where(finished.unsqueeze(1), pad_token.to(tokens), tokens)
        log_weights = log_weights.masked_fill(finished.unsqueeze(1), -torch.inf)
        log_weights[:, 0].masked_fill_(finished, 0.0)
    taken = log_weights > -torch.inf
    if scores.device.type != "xla":  # there a fixed width is worth more than fewer columns
        width = max(1, int(taken.sum(1).max()))
        tokens, log_weights, taken = tokens[:, :width], log_weights[:, :width], taken[:, :width]
    return CandidateSet(torch.where(taken, tokens, tokens[:, :1]), log_weights)


def _collapse(drawn):
    """Repeated draws merged, ``(batch, K)`` each: distinct tokens first, ascending, and the logs of their numbers (else -inf)."""
    drawn = drawn.sort(1).values
    slot = F.pad((drawn[:, 1:] != drawn[:, :-1]).long().cumsum(1), (1, 0))
    tokens = drawn[:, :1].expand_as(drawn).scatter(1, slot, drawn)
    counts = torch.zeros_like(drawn).scatter_add_(1, slot, torch.ones_like(drawn))
    return tokens, counts.float().log()


def choice_weights(log_weights: Tensor) -> Tensor:
    """Probability of each candidate to be emitted, from log weight - E, ``(batch, width)``."""
    return torch.softmax(log_weights, -1)


def choose_candidate(log_weights: Tensor, do_sample: bool) -> Tensor:
    """Column of the candidate to emit, drawn from `choice_weights` or their argmax, ``(batch, 1)``."""
    if do_sample:
        return torch.multinomial(choice_weights(log_weights), 1)
    return log_weights.argmax(-1, keepdim=True)
