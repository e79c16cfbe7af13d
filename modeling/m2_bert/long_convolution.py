"""Convolution of a row with a filter as long as the row, over lags of one sign or both.

    y_i = sum_{j <= i} k_f[i - j] x_j + sum_{j > i} k_r[j - i - 1] x_j

Layouts: x ``(channels, batch, seq)``; taps ``(directions, channels, seq)`` with k_f first and then, for two directions, k_r,
whose tap 0 is lag -1 (lag 0 is in k_f only; its last tap is never reached).
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


@functools.lru_cache(maxsize=1024)
def fft_length(seq: int) -> int:
    """Smallest 2^a 3^b 5^c that holds the circular convolution of a row of ``seq``: at least 2 seq - 1."""
    need, best = 2 * seq - 1, 1 << (2 * seq - 2).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            two = three << max(0, (-(-need // three) - 1).bit_length())
            best = min(best, two) if two >= need else best
            three *= 3
        five *= 5
    return best


def circular_filter(taps: Tensor, size: int) -> Tensor:
    """Taps of one or two directions as one circular filter: lag n >= 0 at n, lag -n at size - n, ``(channels, size)``."""
    seq = taps.shape[-1]
    if len(taps) == 1:
        return F.pad(taps[0], (0, size - seq))
    gap = taps.new_zeros(taps.shape[1], size - 2 * seq + 1)
    return torch.cat([taps[0], gap, taps[1, :, : seq - 1].flip(-1)], -1)


def spectrum(taps: Tensor, size: int) -> Tensor:
    """Transform of the `circular_filter`, ``(channels, size // 2 + 1)``, complex."""
    return torch.fft.rfft(circular_filter(taps, size))


def convolve_with_spectrum(x: Tensor, kernel_spectrum: Tensor, size: int) -> Tensor:
    """The convolution of x ``(channels, batch, seq)`` with a filter given by its `spectrum`."""
    product = torch.fft.rfft(x, n=size) * kernel_spectrum[:, None]
    return torch.fft.irfft(product, n=size)[..., : x.shape[-1]]


def direct_convolution(x: Tensor, taps: Tensor) -> Tensor:
    """The sum as it is written, as a dense product with the ``(seq, seq)`` matrix of each channel; O(seq^2) time and memory."""
    seq = x.shape[-1]
    lag = torch.arange(seq, device=x.device)[:, None] - torch.arange(seq, device=x.device)
    matrix = torch.where(lag >= 0, taps[0][:, lag.clamp(min=0)], 0.0)
    if len(taps) == 2:
        matrix = matrix + torch.where(lag < 0, taps[1][:, (-lag - 1).clamp(min=0)], 0.0)
    return torch.einsum("cij,cbj->cbi", matrix, x)


class _FFTConvolution(torch.autograd.Function):
    """Keeps x and the filter only; every transform is made again in the backward pass."""

    @staticmethod
    def forward(ctx, x, kernel):
        ctx.save_for_backward(x, kernel)
        return convolve_with_spectrum(x, torch.fft.rfft(kernel), kernel.shape[-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, kernel = ctx.saved_tensors
        return convolution_gradients(grad, x, kernel)


def convolution_gradients(grad: Tensor, x: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the convolution to x and to the circular filter."""
    size = kernel.shape[-1]
    grad_spectrum = torch.fft.rfft(grad, n=size)
    to_kernel = correlation(grad_spectrum, torch.fft.rfft(x, n=size), size)
    to_x = torch.fft.irfft(grad_spectrum.mul_(torch.fft.rfft(kernel).conj()[:, None]), n=size)[..., : x.shape[-1]]
    return to_x, to_kernel


def correlation(grad_spectrum: Tensor, input_spectrum: Tensor, size: int) -> Tensor:
    """Gradient to the circular filter from the transforms of the gradient and the input, ``(channels, size)``."""
    product = grad_spectrum * input_spectrum.conj()
    return torch.fft.irfft(product.sum(1) if product.shape[1] > 1 else product[:, 0], n=size)


def long_convolution(x: Tensor, taps: Tensor, backend: str = "fft") -> Tensor:
    """The convolution above, ``(channels, batch, seq)``.

    Args:
        backend: ``"fft"`` or ``"direct"`` (the oracle).

    Raises:
        ValueError: another backend, taps of another shape than x asks for.
    """
    if taps.ndim != 3 or len(taps) not in (1, 2) or taps.shape[1:] != (x.shape[0], x.shape[-1]):
        raise ValueError(
            f"taps must be (1 or 2, {x.shape[0]}, {x.shape[-1]}) for x of shape {tuple(x.shape)}, got {tuple(taps.shape)}."
        )
    if backend == "direct":
        return direct_convolution(x, taps)
    if backend != "fft":
        raise ValueError(f'backend must be "fft" or "direct", got "{backend}".')
    if torch.compiler.is_compiling():
        size = fft_length.__wrapped__(x.shape[-1])  # dynamo does not trace caches
        return convolve_with_spectrum(x, spectrum(taps, size), size)
    return _FFTConvolution.apply(x, circular_filter(taps, fft_length(x.shape[-1])))
