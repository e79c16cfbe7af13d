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
from .long_convolution import fft_length
from .short_convolution import ShortConvolution


PRE_NORM_EPS = 1e-5
TAP_CHANNELS = 64  # filters that are made at once where their spectra are not remembered
PROJECTED_CHANNELS = 128  # of x1, x2 and v each that are in flight at once in evaluation, ...
PROJECTED_ELEMENTS = 2**23  # ... where all of them would be more than this
TOKEN_TILE = 512  # tokens of the output projection and the MLP that are in flight at once in evaluation


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
        return project(self.out_proj, self.mix(u, mask))

    def mix(self, u: Tensor, mask: Tensor | None = None) -> Tensor:
        """All but the output projection: y of `gated_convolution`, a tensor of its own."""
        if self.norm is not None:
            u = self.norm(u.permute(1, 2, 0)).permute(2, 0, 1).contiguous()
        weight, bias = self.short_conv()
        weight, bias = weight.view(3, len(u), -1), bias.view(3, -1)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or self.backend != "fft":
            p = project(self.in_proj, u).view(3, *u.shape)
            with torch.autocast(u.device.type, enabled=False):
                kernels = [self._kernel(filter, u.shape[-1]) for filter in self.filters]
                return gated_convolution(p, weight, bias, u, *kernels, mask=mask, backend=self.backend)
        return self._evaluate(u, weight, bias, mask)

    def _kernel(self, filter, length):
        plain = torch.compiler.is_compiling() or self.backend != "fft"
        return filter(length)[:] if plain else filter(length).circular(slice(None), fft_length(length))

    def _evaluate(self, u, weight, bias, mask):
        spectra, y = self._spectra(u.shape[-1]), None
        for part, p in self._projections(u):
            y = p.new_empty(u.shape) if y is None else y
            with torch.autocast(u.device.type, enabled=False):
                evaluate_gated_convolution(
                    p, weight[:, part], bias[:, part], u[part],
                    lambda inner, first=part.start: spectra(slice(first + inner.start, first + inner.stop)), mask, y[part],
                )  # fmt: skip
        return y

    def _projections(self, u):
        """W_in u + b_in of some channels of x1, x2 and v at a time: their slice, and ``(3, channels, batch, seq)`` till the next."""
        hidden = len(u)
        fits = 3 * u.numel() <= PROJECTED_ELEMENTS
        if fits or not is_plain(self.in_proj) or torch.is_autocast_enabled(u.device.type):
            p = project(self.in_proj, u).view(3, *u.shape)
            yield slice(0, hidden), p
            return
        weight, bias = self.in_proj.weight.view(3, hidden, hidden), self.in_proj.bias.view(3, hidden)
        space = u.new_empty(3 * min(PROJECTED_CHANNELS, hidden), u[0].numel())
        for start in range(0, hidden, PROJECTED_CHANNELS):
            part = slice(start, min(start + PROJECTED_CHANNELS, hidden))
            rows = weight[:, part].reshape(-1, hidden)
            p = torch.mm(rows, u.reshape(hidden, -1), out=space[: len(rows)])
            yield part, p.add_(bias[:, part].reshape(-1, 1)).view(3, -1, *u.shape[1:])

    def _spectra(self, length):
        """Remembered spectra of the channels, or the means to make them piece by piece."""
        known = None if self.training else self.spectra.find(self.filters, length)
        if known is not None:
            return lambda part: [each[part] for each in known]
        return _BlockwiseSpectra([filter(length) for filter in self.filters], fft_length(length))


class _BlockwiseSpectra:
    """Spectra of a few channels, from kernels that are made for `TAP_CHANNELS` channels at a time: wide products are faster.

    Slices must be asked for in ascending order, each inside one such block or starting with one.
    """

    def __init__(self, filters, size):
        self.filters, self.size = filters, size
        self.block, self.kernels = slice(0, 0), []

    def __call__(self, part: slice) -> list[Tensor]:
        if part.start < self.block.start or part.stop > self.block.stop:
            start = part.start // TAP_CHANNELS * TAP_CHANNELS
            self.block, self.kernels = slice(start, max(start + TAP_CHANNELS, part.stop)), []
            self.kernels = [each.circular(self.block, self.size) for each in self.filters]
        inside = slice(part.start - self.block.start, part.stop - self.block.start)
        return [torch.fft.rfft(each[inside]) for each in self.kernels]


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
        return self.tile(x.reshape(len(x), -1)).contiguous().view(x.shape)

    def tile(self, x: Tensor) -> Tensor:
        """``(hidden, tokens)`` -> the same shape, in the memory order of the other one."""
        h = self.up(x)
        if not self.gated:
            h = self.dropout(F.gelu(h))
        elif type(self.dropout) is nn.Dropout:
            h = gated_gelu(h, self.dropout.p if self.dropout.training else 0.0)
        else:
            h = self.dropout(gated_gelu(h))
        return self.norm((self.down(h) + x).t()).t()


class M2BertLayer(GradientCheckpointingLayer):
    """Mixer, then MLP."""

    def __init__(self, config):
        super().__init__()
        self.mixer = M2BertMixer(config)
        self.mlp = M2BertMLP(config)

    def forward(self, hidden_states: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(hidden, batch, seq)`` -> the same shape."""
        whole = torch.is_grad_enabled() or torch.compiler.is_compiling()
        if whole or has_hooks(self.mixer) or has_hooks(self.mlp):
            return self.mlp(self.mixer(hidden_states, mask))
        y = self.mixer.mix(hidden_states, mask)
        tokens, out = y.view(len(y), -1), None
        for start in range(0, tokens.shape[1], TOKEN_TILE):
            part = slice(start, start + TOKEN_TILE)
            tile = self.mlp.tile(project(self.mixer.out_proj, tokens[:, None, part]).squeeze(1))
            if out is None:  # y's own memory where the types allow: it is not read again
                out = tokens if tile.dtype == tokens.dtype else torch.empty_like(tokens, dtype=tile.dtype)
            out[:, part] = tile
        return out.view(y.shape)


def has_hooks(module: nn.Module) -> bool:
    """Whether something watches, moves or replaces calls of the module itself."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or hasattr(module, "_hf_hook")
    )


def is_plain(linear: nn.Module) -> bool:
    """Whether ``linear`` is its weight and bias and no more: no adapter, no quantised layer, no hook."""
    return type(linear) is nn.Linear and not has_hooks(linear)


def project(linear: nn.Module, x: Tensor) -> Tensor:
    """``linear`` on the channels of x, ``(in, batch, seq)`` -> ``(out, batch, seq)``; one product without copies if it is plain.

    Adapters, quantised layers and layers with hooks are called as they expect to be, tokens first.
    """
    if is_plain(linear):
        y = torch.addmm(linear.bias[:, None], linear.weight, x.reshape(len(x), -1))
        return y.view(-1, *x.shape[1:])
    return linear(x.permute(1, 2, 0)).permute(2, 0, 1).contiguous()
