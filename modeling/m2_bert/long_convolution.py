"""Convolution of a row with a filter as long as the row, over lags of one sign or both.

    y_i = sum_{j <= i} k_f[i - j] x_j + sum_{j > i} k_r[j - i - 1] x_j

Layouts: x ``(channels, batch, seq)``; taps ``(directions, channels, seq)`` with k_f first and then, for two directions, k_r,
whose tap 0 is lag -1 (lag 0 is in k_f only; its last tap is never reached).
"""

import functools

import torch
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


def spectrum(taps: Tensor, size: int) -> Tensor:
    """Transform of both directions as one circular filter of ``size``, ``(channels, size // 2 + 1)``, complex.

    Lag n >= 0 lies at index n, lag -n at index size - n.
    """
    seq = taps.shape[-1]
    parts = [taps[0]]
    if len(taps) == 2:
        parts = [taps[0], taps.new_zeros(taps.shape[1], size - 2 * seq + 1), taps[1, :, : seq - 1].flip(-1)]
    return torch.fft.rfft(torch.cat(parts, -1), n=size)


def taps_gradient(kernel_spectrum_grad: Tensor, directions: int, seq: int, size: int) -> Tensor:
    """Gradient to the taps from the transform of the gradient to the circular filter, ``(directions, channels, seq)``."""
    grad = torch.fft.irfft(kernel_spectrum_grad, n=size)
    if directions == 1:
        return grad[None, :, :seq]
    reverse = grad[:, size - seq + 1 :].flip(-1)
    return torch.stack([grad[:, :seq], torch.cat([reverse, torch.zeros_like(grad[:, :1])], -1)])


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
    """Keeps x and the taps only; every transform is made again in the backward pass."""

    @staticmethod
    def forward(ctx, x, taps):
        ctx.save_for_backward(x, taps)
        size = fft_length(x.shape[-1])
        return convolve_with_spectrum(x, spectrum(taps, size), size)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, taps = ctx.saved_tensors
        size = fft_length(x.shape[-1])
        return convolution_gradients(grad, x, taps, spectrum(taps, size), size)


def convolution_gradients(grad: Tensor, x: Tensor, taps: Tensor, kernel_spectrum: Tensor, size: int):
    """Gradients of the convolution to x and to the taps."""
    seq = x.shape[-1]
    grad_spectrum = torch.fft.rfft(grad, n=size)
    to_kernel = (grad_spectrum * torch.fft.rfft(x, n=size).conj()).sum(1)
    to_x = torch.fft.irfft(grad_spectrum.mul_(kernel_spectrum.conj()[:, None]), n=size)[..., :seq]
    return to_x, taps_gradient(to_kernel, len(taps), seq, size)


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
    return _FFTConvolution.apply(x, taps)
