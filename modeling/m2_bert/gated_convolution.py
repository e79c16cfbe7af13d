"""The mixer between its two projections: short convolution, gate, long convolution, gate, residual long convolution.

    y = x2 * conv(x1 * v, k_gated) + conv(u, k_residual)         [x1 | x2 | v] = short convolution of the projections p

Computed in pieces of a few channels that fit the processor's cache. In training only the inputs and the filters are kept: the
backward pass runs over the same pieces and computes what it needs again, so that no spectrum and no gate is ever stored.

Shapes: p ``(3, channels, batch, seq)``, u and y ``(channels, batch, seq)``, mask ``(batch, seq)`` or None (1 = token), which
multiplies p, x1 * v and u. Computed in the dtype of the filters, which is float32 or float64; y has the dtype of p.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .long_convolution import (
    convolution_gradients,
    convolve_with_spectrum,
    fft_length,
    long_convolution,
    spectrum,
    taps_gradient,
)
from .short_convolution import short_convolution, short_convolution_backward


CHUNK_ELEMENTS = 2**16  # of one channel-chunk of a (channels, batch, seq) tensor; larger ones leave the cache


def channel_chunks(channels: int, batch: int, seq: int) -> Iterator[slice]:
    """Slices of the channels, each of at most `CHUNK_ELEMENTS` values or 4 channels; their length is a power of two."""
    size = 1 << max(2, (CHUNK_ELEMENTS // (batch * seq)).bit_length() - 1)
    for start in range(0, channels, size):
        yield slice(start, min(start + size, channels))


def gated_convolution(p, weight, bias, u, gated, residual=None, mask=None, backend="fft") -> Tensor:
    """The mixer's middle, differentiable.

    Args:
        weight, bias: of the short convolution, ``(3, channels, 3)`` and ``(3, channels)``.
        gated, residual: taps of the two filters, ``(directions, channels, seq)``; None = no residual convolution.
        backend: of the long convolutions.
    """
    if backend == "fft" and not torch.compiler.is_compiling():
        return _GatedConvolution.apply(p, weight, bias, u, gated, residual, mask)
    dtype = gated.dtype
    x1, x2, v = short_convolution(_masked(p, mask, dtype), weight.to(dtype), bias.to(dtype))
    y = x2 * long_convolution(_masked(x1 * v, mask, dtype), gated, backend)
    if residual is not None:
        y = y + long_convolution(_masked(u, mask, dtype), residual, backend)
    return y.to(p.dtype)


def evaluate_gated_convolution(
    p: Tensor,
    weight: Tensor,
    bias: Tensor,
    u: Tensor,
    spectra: Callable[[slice], list[Tensor]],
    mask: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The same without gradients, from the spectra of the gated and, if there is one, the residual filter.

    Args:
        spectra: for a slice of the channels, their `spectrum` in each filter, made or looked up.
        out: where y goes; ``p[0]`` may be overwritten if p is not needed any more.
    """
    _, channels, batch, seq = p.shape
    size, y = fft_length(seq), torch.empty_like(p[0]) if out is None else out
    for part in channel_chunks(channels, batch, seq):
        y[part] = _piece(p[:, part], weight[:, part], bias[:, part], u[part], spectra(part), mask, size)
    return y


def _piece(p, weight, bias, u, spectra, mask, size):
    dtype = spectra[0].real.dtype
    x1, x2, v = short_convolution(_masked(p, mask, dtype), weight.to(dtype), bias.to(dtype))
    y = convolve_with_spectrum(_masked(x1.mul_(v), mask, dtype), spectra[0], size).mul_(x2)
    if len(spectra) == 2:
        y += convolve_with_spectrum(_masked(u, mask, dtype), spectra[1], size)
    return y


class _GatedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, p, weight, bias, u, gated, residual, mask):
        ctx.save_for_backward(p, weight, bias, u, gated, residual, mask)
        size = fft_length(p.shape[-1])
        taps = [gated] if residual is None else [gated, residual]
        return evaluate_gated_convolution(
            p, weight, bias, u, lambda part: [spectrum(k[:, part], size) for k in taps], mask
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        p, weight, bias, u, gated, residual, mask = ctx.saved_tensors
        grads = [
            None if tensor is None else torch.empty_like(tensor) for tensor in (p, weight, bias, u, gated, residual)
        ]
        for part in channel_chunks(*p.shape[1:]):
            piece = _piece_gradients(
                grad[part], p[:, part], weight[:, part], bias[:, part], u[part], gated[:, part],
                None if residual is None else residual[:, part], mask,
            )  # fmt: skip
            for whole, value in zip(grads, piece, strict=True):
                if whole is not None:
                    (whole[part] if whole is grads[3] else whole[:, part]).copy_(0.0 if value is None else value)
        return (*grads, None)


def _piece_gradients(grad, p, weight, bias, u, gated, residual, mask):
    """Gradients to p, weight, bias, u and the taps of both filters, for some of the channels."""
    dtype, seq = gated.dtype, p.shape[-1]
    size, grad = fft_length(seq), grad.to(dtype)
    p, weight = _masked(p, mask, dtype), weight.to(dtype)
    x1, x2, v = short_convolution(p, weight, bias.to(dtype))
    input_spectrum = torch.fft.rfft(_masked(x1 * v, mask, dtype), n=size)
    kernel_spectrum = spectrum(gated, size)[:, None]
    convolved = torch.fft.irfft(input_spectrum * kernel_spectrum, n=size)[..., :seq]
    grad_spectrum = torch.fft.rfft(grad * x2, n=size)
    to_gated = taps_gradient((grad_spectrum * input_spectrum.conj()).sum(1), len(gated), seq, size)
    to_gate = torch.fft.irfft(grad_spectrum.mul_(kernel_spectrum.conj()), n=size)[..., :seq]
    to_gate = _masked(to_gate, mask, dtype)
    to_short = torch.stack([to_gate * v, grad * convolved, to_gate * x1])
    to_p, to_weight, to_bias = short_convolution_backward(to_short, p, weight)
    to_u = to_residual = None
    if residual is not None:
        kernel_spectrum = spectrum(residual, size)
        to_u, to_residual = convolution_gradients(grad, _masked(u, mask, dtype), residual, kernel_spectrum, size)
        to_u = _masked(to_u, mask, dtype)
    return _masked(to_p, mask, dtype), to_weight, to_bias, to_u, to_gated, to_residual


def _masked(x, mask, dtype):
    x = x.to(dtype)
    return x if mask is None else x * mask.to(dtype)
