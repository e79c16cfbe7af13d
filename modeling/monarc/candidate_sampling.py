"""Exact sampling from unnormalised weights by a two-level inverse CDF."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_two_level(
    weights: Tensor, num_samples: int, generator: torch.Generator | None = None, block_size: int | None = None
) -> Tensor:
    """Draws ``num_samples`` indices per row, with replacement, with probability proportional to ``weights``.

    Inverse CDF in two steps: a cumulative sum over blocks of ``block_size`` picks the block, a second one inside that block
    picks the index. One uniform number per sample, one pass over the weights; entries of weight 0 are never drawn (up to
    float32 rounding of the cumulative sums the law is exact).

    Args:
        weights: non-negative, at least one positive per row, ``(rows, vocab)``.
        num_samples: per row.
        generator: source of the uniform numbers, on the weights' device; None = the default generator.
        block_size: None = a power of two near sqrt(vocab), at most 256, which makes both steps equally short.

    Returns:
        indices, int64, ``(rows, num_samples)``.
    """
    if block_size is None:
        block_size = min(256, 1 << math.isqrt(weights.shape[1]).bit_length())
    ends = _block_sums(weights, block_size).cumsum(-1)  # (rows, blocks)
    target = torch.rand(len(weights), num_samples, dtype=weights.dtype, device=weights.device, generator=generator)
    target *= ends[:, -1:]
    block = torch.searchsorted(ends, _below(target, ends[:, -1:]), right=True)
    start = F.pad(ends, (1, 0)).gather(1, block)
    inside = _gather_blocks(weights, block, block_size).cumsum(-1)  # (rows, samples, block_size)
    rest = _below(target - start, inside[..., -1]).clamp_(min=0)
    offset = torch.searchsorted(inside, rest.unsqueeze(-1), right=True).squeeze(-1)
    index = block * block_size + offset
    return index.clamp_(max=weights.shape[1] - 1)  # in range even where the weights are not finite


def _block_sums(weights, block_size):
    """Sums over consecutive blocks, the last one shorter, ``(rows, blocks)``; no padded copy of the weights is made."""
    full = weights.shape[1] // block_size * block_size
    sums = weights[:, :full].unflatten(1, (-1, block_size)).sum(-1)
    return sums if full == weights.shape[1] else torch.cat([sums, weights[:, full:].sum(1, keepdim=True)], 1)


def _gather_blocks(weights, block, block_size):
    """The chosen blocks, zero beyond the end, ``(rows, samples, block_size)``."""
    index = block.unsqueeze(-1) * block_size + torch.arange(block_size, device=weights.device)
    inside = index < weights.shape[1]
    gathered = weights.gather(1, index.clamp(max=weights.shape[1] - 1).flatten(1)).view(index.shape)
    return gathered * inside


def _below(target, total):
    """``target`` kept strictly below ``total``, so that rounding never selects past the last positive weight."""
    return torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
