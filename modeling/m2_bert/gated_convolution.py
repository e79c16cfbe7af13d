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
    circular_filter,
    correlation,
    fft_length,
    long_convolution,
)
from .short_convolution import short_convolution, short_convolution_backward


CHUNK_ELEMENTS = 2**16  # of one channel-chunk of a (channels, batch, seq) tensor; larger ones leave the cache
CHUNK_ROWS = (
    16  # that one call of the transform should get, within 4 times that size: every call makes its tables anew
)


def channel_chunks(channels: int, batch: int, seq: int) -> Iterator[slice]:
    """Slices of the channels: about `CHUNK_ELEMENTS` values, at least 4 channels; their length is a power of two."""
    row = batch * seq
    size = max(4, CHUNK_ELEMENTS // row, min(CHUNK_ROWS, 4 * CHUNK_ELEMENTS // row))
    size = 1 << (size.bit_length() - 1)
    for start in range(0, channels, size):
        yield slice(start, min(start + size, channels))


def gated_convolution(p, weight, bias, u, gated, residual=None, mask=None, backend="fft") -> Tensor:
    """The mixer's middle, differentiable.

    Args:
        weight, bias: of the short convolution, ``(3, channels, 3)`` and ``(3, channels)``.
        gated, residual: the two filters, as taps ``(directions, channels, seq)`` or, with ``"fft"``, as circular filters
            ``(channels, fft_length(seq))``; None = no residual convolution.
        backend: of the long convolutions.
    """
    if backend == "fft" and not torch.compiler.is_compiling():
        size = fft_length(p.shape[-1])
        kernels = [k if k is None or k.ndim == 2 else circular_filter(k, size) for k in (gated, residual)]
        return _GatedConvolution.apply(p, weight, bias, u, *kernels, mask)
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
    space = None
    for part in channel_chunks(channels, batch, seq):
        known = spectra(part)
        if space is None:  # rows with zeros behind them, as the transform reads them
            space = known[0].real.new_zeros(part.stop, batch, size)
        rows = space[: part.stop - part.start]
        _piece(p[:, part], weight[:, part], bias[:, part], u[part], known, mask, rows, y[part])
    return y


def _piece(p, weight, bias, u, spectra, mask, rows, out):
    """y of some channels, written to ``out``; ``rows`` is zero from ``seq`` on."""
    dtype, x = rows.dtype, rows[..., : p.shape[-1]]
    x1, x2, v = short_convolution(_masked(p, mask, dtype), weight.to(dtype), bias.to(dtype))
    torch.mul(x1, v, out=x)
    if mask is not None:
        x.mul_(mask.to(dtype))
    gated = _circular(rows, spectra[0])[..., : p.shape[-1]]
    if len(spectra) == 1:
        out.copy_(gated.mul_(x2))
        return
    x.copy_(_masked(u, mask, dtype))
    torch.addcmul(_circular(rows, spectra[1])[..., : p.shape[-1]], gated, x2, out=out)


def _circular(rows, kernel_spectrum):
    return torch.fft.irfft(torch.fft.rfft(rows).mul_(kernel_spectrum[:, None]), n=rows.shape[-1])


class _GatedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, p, weight, bias, u, gated, residual, mask):
        ctx.save_for_backward(p, weight, bias, u, gated, residual, mask)
        kernels = [gated] if residual is None else [gated, residual]
        return evaluate_gated_convolution(
            p, weight, bias, u, lambda part: [torch.fft.rfft(k[part]) for k in kernels], mask
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        p, weight, bias, u, gated, residual, mask = ctx.saved_tensors
        whole = [None if t is None else torch.empty_like(t) for t in (p, weight, bias, u, gated, residual)]
        rows = None
        for part in channel_chunks(*p.shape[1:]):
            if rows is None:  # zeros behind the rows, as the transform reads them
                rows = gated.new_zeros(part.stop, p.shape[2], gated.shape[-1])
            space, y_grad = rows[: part.stop - part.start], grad[part].to(gated.dtype)
            pieces = [tensor[:, part] for tensor in whole[:3]]
            whole[4][part] = _gated_gradients(
                y_grad, p[:, part], weight[:, part], bias[:, part], gated[part], mask, space, pieces
            )
            if residual is None:
                whole[3][part] = 0
                continue
            to_u, whole[5][part] = _residual_gradients(y_grad, u[part], residual[part], mask, space)
            whole[3][part] = _masked(to_u, mask, gated.dtype)
        return (*whole, None)


def _gated_gradients(grad, p, weight, bias, kernel, mask, rows, out):
    """Gradient to the gated filter of some channels; those to p, weight and bias are written to ``out``."""
    dtype, seq = kernel.dtype, p.shape[-1]
    size, x = rows.shape[-1], rows[..., :seq]
    p, weight = _masked(p, mask, dtype), weight.to(dtype)
    x1, x2, v = short_convolution(p, weight, bias.to(dtype))
    torch.mul(x1, v, out=x)
    if mask is not None:
        x.mul_(mask.to(dtype))
    input_spectrum, kernel_spectrum = torch.fft.rfft(rows), torch.fft.rfft(kernel)[:, None]
    to_short = torch.empty_like(p)
    torch.mul(grad, torch.fft.irfft(input_spectrum * kernel_spectrum, n=size)[..., :seq], out=to_short[1])
    torch.mul(x2, grad, out=x)
    grad_spectrum = torch.fft.rfft(rows)
    to_kernel = correlation(grad_spectrum, input_spectrum, size)
    to_gate = torch.fft.irfft(grad_spectrum.mul_(kernel_spectrum.conj()), n=size)[..., :seq]
    to_gate = _masked(to_gate, mask, dtype)
    torch.mul(to_gate, v, out=to_short[0])
    torch.mul(to_gate, x1, out=to_short[2])
    to_p, to_weight, to_bias = short_convolution_backward(
        to_short, p, weight, out[0] if out[0].dtype == dtype else None
    )
    if mask is not None or to_p.dtype != out[0].dtype:
        out[0].copy_(_masked(to_p, mask, dtype))
    out[1].copy_(to_weight)
    out[2].copy_(to_bias)
    return to_kernel


def _residual_gradients(grad, u, kernel, mask, rows):
    """Gradients to u, before the mask, and to the residual filter."""
    x = rows[..., : u.shape[-1]]
    x.copy_(_masked(u, mask, kernel.dtype))
    input_spectrum = torch.fft.rfft(rows)
    x.copy_(grad)
    grad_spectrum = torch.fft.rfft(rows)
    to_kernel = correlation(grad_spectrum, input_spectrum, rows.shape[-1])
    product = grad_spectrum.mul_(torch.fft.rfft(kernel).conj()[:, None])
    return torch.fft.irfft(product, n=rows.shape[-1])[..., : u.shape[-1]], to_kernel


def _masked(x, mask, dtype):
    x = x.to(dtype)
    return x if mask is None else x * mask.to(dtype)
