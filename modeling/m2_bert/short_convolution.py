"""Causal three-tap depthwise convolution."""

import torch
from torch import Tensor, nn


NUM_TAPS = 3


class ShortConvolution(nn.Module):
    """The taps of y_t = b + w_2 x_t + w_1 x_{t-1} + w_0 x_{t-2}, per channel; `short_convolution` applies them.

    They start uniform in (-1/sqrt(3), 1/sqrt(3)), weights and biases.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, NUM_TAPS))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Weight ``(channels, 3)`` and bias ``(channels,)``, to be split with the channels."""
        return self.weight, self.bias


def short_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x ``(..., channels, batch, seq)``, weight ``(..., channels, 3)``, bias ``(..., channels)`` -> shape of x."""
    w = weight[..., None, None, :]
    y = torch.addcmul(bias[..., None, None], x, w[..., 2])
    for lag in range(1, min(NUM_TAPS, x.shape[-1])):
        y[..., lag:].addcmul_(x[..., :-lag], w[..., 2 - lag])
    return y


def short_convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, out: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `short_convolution` to x, weight and bias; the first is written to ``out`` if given."""
    w = weight[..., None, None, :]
    grad_x = torch.mul(grad, w[..., 2], out=out)
    grad_weight = [(grad * x).sum((-1, -2))]
    for lag in range(1, NUM_TAPS):
        if lag < x.shape[-1]:
            grad_x[..., :-lag].addcmul_(grad[..., lag:], w[..., 2 - lag])
            grad_weight.append((grad[..., lag:] * x[..., :-lag]).sum((-1, -2)))
        else:
            grad_weight.append(torch.zeros_like(grad_weight[0]))
    return grad_x, torch.stack(grad_weight[::-1], -1), grad.sum((-1, -2))
