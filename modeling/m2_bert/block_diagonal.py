"""Block-diagonal linear layers, and the gated GELU between two of them.

Everything here is channels-first, ``(channels, tokens)``: a block-diagonal product is then one batched matrix product of
contiguous pieces, with no copy before or after it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BlockDiagonalLinear(nn.Module):
    """y = diag(W_1, ..., W_n) x + b on the channels of x.

        y[k q + j] = sum_i W[k, j, i] x[k p + i]           (n, q, p) = (blocks, ceil(out / n), ceil(in / n))

    Inputs are padded with zeros to n p channels and outputs cropped to ``out_features``, as in the Monarch Mixer code, where the
    "Monarch" matrices of the MLP are these: one factor, no permutation. ``num_blocks=1`` is an ordinary dense layer.
    """

    weight: Tensor  # (blocks, out per block, in per block)

    def __init__(self, in_features: int, out_features: int, num_blocks: int = 1, bias: bool = True):
        super().__init__()
        self.in_features, self.out_features, self.num_blocks = in_features, out_features, num_blocks
        self.weight = nn.Parameter(
            torch.empty(num_blocks, -(-out_features // num_blocks), -(-in_features // num_blocks))
        )
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    @property
    def weight_bound(self) -> float:
        """Weights start uniform in (-bound, bound): sqrt(blocks) times PyTorch's bound of the dense layer."""
        return (self.num_blocks / self.in_features) ** 0.5

    @property
    def bias_bound(self) -> float:
        """Biases start uniform in (-bound, bound)."""
        return self.out_features**-0.5

    def forward(self, x: Tensor) -> Tensor:
        """``(in_features, tokens)`` -> ``(out_features, tokens)``."""
        blocks, rows, columns = self.weight.shape
        x = _pad_channels(x, blocks * columns).reshape(blocks, columns, -1)
        if self.bias is None:
            y = torch.bmm(self.weight, x)
        else:
            bias = _pad_channels(self.bias.unsqueeze(-1), blocks * rows).view(blocks, rows, 1)
            y = torch.baddbmm(bias, self.weight, x)
        return y.view(blocks * rows, -1)[: self.out_features]

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, num_blocks={self.num_blocks}"


def _pad_channels(x, channels):
    return x if x.shape[0] == channels else F.pad(x, (0, 0, 0, channels - x.shape[0]))


class _GatedGelu(torch.autograd.Function):
    """scale keep GELU(a) b; keeps x and the boolean mask only and recomputes GELU(a) in the backward pass."""

    @staticmethod
    def forward(ctx, x, keep, scale):
        ctx.save_for_backward(x, keep)
        ctx.scale = scale
        a, b = x.chunk(2)
        y = F.gelu(a).mul_(b)
        return y if keep is None else y.mul_(keep.to(y.dtype).mul_(scale))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, keep = ctx.saved_tensors
        a, b = x.chunk(2)
        if keep is not None:
            grad = keep.to(grad.dtype).mul_(ctx.scale).mul_(grad)
        out = torch.empty_like(x)
        to_a, to_b = out.chunk(2)
        gate = F.gelu(a)
        torch.mul(gate, grad, out=to_b)
        torch.ops.aten.gelu_backward.grad_input(torch.mul(b, grad, out=gate), a, grad_input=to_a)
        return out, None, None


def gated_gelu(x: Tensor, dropout: float = 0.0) -> Tensor:
    """GELU(a) * b of the two halves of the channels, ``(2 c, tokens)`` -> ``(c, tokens)``; GELU with the error function.

    Args:
        dropout: probability of a 0 in the result, the rest scaled to the same mean. On the CPU it is rounded to 1 / 65,536,
            for 16 random bits per value: PyTorch's own draw takes longer than everything else here.
    """
    a, b = x.chunk(2)
    if torch.compiler.is_compiling():
        return F.dropout(F.gelu(a) * b, dropout)
    if torch.is_grad_enabled():
        return _GatedGelu.apply(x, *_dropout_mask(a, dropout))
    y = F.gelu(a).mul_(b)
    return F.dropout(y, dropout, inplace=True) if dropout else y


def _dropout_mask(like, dropout):
    """Which values to keep, and their factor; (None, 1.0) = all."""
    if not dropout:
        return None, 1.0
    if like.device.type != "cpu":
        return torch.empty_like(like, dtype=torch.bool).bernoulli_(1 - dropout), 1 / (1 - dropout)
    dropped, numel = round(dropout * 2**16), like.numel()
    bits = torch.empty(-(-numel // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    keep = bits[:numel] >= dropped - 2**15 if dropped < 2**16 else torch.zeros(numel, dtype=torch.bool)
    return keep.view(like.shape), 2**16 / max(1, 2**16 - dropped)
