"""One layer of the encoder: a sequence mixer and an MLP, both on channels-first states ``(hidden, batch, seq)``.

There is no residual connection and no norm around the mixer; the only norm is at the end of the MLP.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .block_diagonal import BlockDiagonalLinear, gated_gelu
from .gated_convolution import evaluate_gated_convolution, gated_convolution
from .implicit_filter import ImplicitFilter
from .kernel_spectra import KernelSpectra
from .long_convolution import fft_length, spectrum
from .short_convolution import ShortConvolution


PRE_NORM_EPS = 1e-5
TAP_CHANNELS = 64  # filters that are made at once where their spectra are not remembered
MLP_TILE = 1024  # tokens of the MLP that are in flight at once in evaluation


class M2BertMixer(nn.Module):
    """y = W_out (x2 * conv(x1 * v, k_gated) + conv(u, k_residual)) + b_out,  [x1 | x2 | v] = short_conv(W_in u + b_in)."""

    def __init__(self, config):
        super().__init__()
        hidden = config.hidden_size
        self.backend = config.conv_backend
        self.norm = nn.LayerNorm(hidden, eps=PRE_NORM_EPS) if config.mixer_pre_norm else None
        self.in_proj = nn.Linear(hidden, 3 * hidden)
        self.short_conv = ShortConvolution(3 * hidden)
        self.gated_filter = ImplicitFilter(config)
        self.residual_filter = ImplicitFilter(config) if config.residual_long_conv else None
        self.out_proj = nn.Linear(hidden, hidden)
        self.spectra = KernelSpectra(config.kernel_cache_bytes // config.num_hidden_layers)

    @property
    def filters(self) -> list[ImplicitFilter]:
        """The gated filter and, if there is one, the residual one."""
        return [self.gated_filter] if self.residual_filter is None else [self.gated_filter, self.residual_filter]

    def train(self, mode: bool = True):
        """As `nn.Module.train`; the remembered spectra are forgotten."""
        self.spectra.clear()
        return super().train(mode)

    def forward(self, u: Tensor, mask: Tensor | None = None) -> Tensor:
        """u ``(hidden, batch, seq)``, mask ``(batch, seq)`` or None -> ``(hidden, batch, seq)``."""
        if self.norm is not None:
            u = self.norm(u.permute(1, 2, 0)).permute(2, 0, 1).contiguous()
        p = project(self.in_proj, u).view(3, *u.shape)
        weight, bias = self.short_conv()
        weight, bias = weight.view(3, len(u), -1), bias.view(3, -1)
        with torch.autocast(u.device.type, enabled=False):
            if torch.is_grad_enabled() or torch.compiler.is_compiling() or self.backend != "fft":
                taps = [filter(u.shape[-1])[:] for filter in self.filters]
                residual = taps[1] if len(taps) == 2 else None
                y = gated_convolution(p, weight, bias, u, taps[0], residual, mask, self.backend)
            else:
                y = evaluate_gated_convolution(p, weight, bias, u, self._spectra(u.shape[-1]), mask, out=p[0])
        return project(self.out_proj, y)

    def _spectra(self, length):
        """Remembered spectra of the channels, or the means to make them piece by piece."""
        known = None if self.training else self.spectra.find(self.filters, length)
        if known is not None:
            return lambda part: [each[part] for each in known]
        return _BlockwiseSpectra([filter(length) for filter in self.filters], fft_length(length))


class _BlockwiseSpectra:
    """Spectra of a few channels, from taps that are made for `TAP_CHANNELS` channels at a time: wide products are faster.

    Slices must be asked for in ascending order, each inside one such block or starting with one.
    """

    def __init__(self, filters, size):
        self.filters, self.size = filters, size
        self.block, self.taps = slice(0, 0), []

    def __call__(self, part: slice) -> list[Tensor]:
        if part.start < self.block.start or part.stop > self.block.stop:
            start = part.start // TAP_CHANNELS * TAP_CHANNELS
            self.block = slice(start, max(start + TAP_CHANNELS, part.stop))
            self.taps = [each[self.block] for each in self.filters]
        inside = slice(part.start - self.block.start, part.stop - self.block.start)
        return [spectrum(each[:, inside], self.size) for each in self.taps]


class M2BertMLP(nn.Module):
    """LayerNorm(W_down g(W_up x) + b + x), block-diagonal; g(a, b) = GELU(a) * b, or GELU without gate."""

    def __init__(self, config):
        super().__init__()
        hidden, inner, blocks = config.hidden_size, config.intermediate_size, config.mlp_num_blocks
        self.gated = config.mlp_gated
        self.up = BlockDiagonalLinear(hidden, 2 * inner if self.gated else inner, blocks, bias=False)
        self.down = BlockDiagonalLinear(inner, hidden, blocks)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """``(hidden, batch, seq)`` -> the same shape."""
        tokens = x.reshape(len(x), -1)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or tokens.shape[1] <= MLP_TILE:
            return self._tile(tokens).contiguous().view(x.shape)
        out = torch.empty_like(tokens)
        for start in range(0, tokens.shape[1], MLP_TILE):
            part = slice(start, start + MLP_TILE)
            out[:, part] = self._tile(tokens[:, part])
        return out.view(x.shape)

    def _tile(self, x):
        h = self.up(x)
        h = self.dropout(gated_gelu(h) if self.gated else F.gelu(h))
        return self.norm((self.down(h) + x).t()).t()


class M2BertLayer(GradientCheckpointingLayer):
    """Mixer, then MLP."""

    def __init__(self, config):
        super().__init__()
        self.mixer = M2BertMixer(config)
        self.mlp = M2BertMLP(config)

    def forward(self, hidden_states: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(hidden, batch, seq)`` -> the same shape."""
        return self.mlp(self.mixer(hidden_states, mask))


def project(linear: nn.Module, x: Tensor) -> Tensor:
    """``linear`` on the channels of x, ``(in, batch, seq)`` -> ``(out, batch, seq)``; one product without copies if it is plain.

    Adapters, quantised layers and layers with hooks are called as they expect to be, tokens first.
    """
    plain = type(linear) is nn.Linear and not hasattr(linear, "_hf_hook")
    if plain and not (linear._forward_hooks or linear._forward_pre_hooks or linear._backward_hooks):
        y = torch.addmm(linear.bias[:, None], linear.weight, x.reshape(len(x), -1))
        return y.view(-1, *x.shape[1:])
    return linear(x.permute(1, 2, 0)).permute(2, 0, 1).contiguous()
