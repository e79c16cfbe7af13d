"""Convolution filters as the output of a small network of the lag (Hyena), in two directions at once."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


FAST_DECAY, SLOW_DECAY, DECAY_TARGET = 0.3, 1.5, 1e-2  # fractions of the filter at which it has decayed to the target


def lag_times(length: int, time_scale: int) -> Tensor:
    """Time of the lags 0..length-1 in float32: 0..1 over the first ``time_scale`` of them, continued linearly beyond."""
    times = torch.linspace(0, 1, time_scale, dtype=torch.float32)[:length]
    if length <= time_scale:
        return times
    beyond = torch.arange(time_scale, length, dtype=torch.float32) / max(1, time_scale - 1)
    return torch.cat([times, beyond])


def lag_features(length: int, time_scale: int, emb_dim: int) -> Tensor:
    """Positional features of the lags: time, then cos and -sin of every band at angle 2 pi n / time_scale, ``(length, emb_dim)``."""
    bands = (emb_dim - 1) // 2
    angles = 2 * math.pi * torch.arange(length, dtype=torch.float32) / time_scale
    phases = torch.linspace(1e-4, bands - 1, bands, dtype=torch.float32) * angles[:, None]
    return torch.cat([lag_times(length, time_scale)[:, None], torch.cos(phases), -torch.sin(phases)], -1)


def decay_rates(channels: int) -> Tensor:
    """Rate of the exponential decay of each channel's filter, per unit of time, float32 ``(channels,)``."""
    slow, fast = math.log(DECAY_TARGET) / SLOW_DECAY, math.log(DECAY_TARGET) / FAST_DECAY
    return torch.linspace(slow, fast, channels, dtype=torch.float32).abs()


@dataclass
class FilterTaps:
    """The filters of one length, made channel by channel as they are needed.

    Attributes:
        features: last layer of the filter network, ``(directions, order, length)``.
        readout: ``(directions, channels, order)``.
        decay: exp(-time * rate) of any channels, ``(channels, length)``.
        skip: factor of the input itself, added to lag 0, ``(channels,)``.
    """

    features: Tensor
    readout: Tensor
    decay: Callable[[slice], Tensor]
    skip: Tensor

    def __getitem__(self, channels: slice) -> Tensor:
        """Taps ``(directions, channels, length)``: lag n of the forward filter, lag -(n + 1) of the reverse one."""
        taps = torch.matmul(self.readout[:, channels], self.features) * self.decay(channels)
        lag_zero = self.skip[None, channels, None]
        return taps + F.pad(lag_zero, (0, taps.shape[-1] - 1, 0, 0, 0, len(taps) - 1))

    def circular(self, channels: slice, size: int) -> Tensor:
        """The taps of both directions as one circular filter: lag n >= 0 at n, lag -n at size - n, ``(channels, size)``."""
        decay = functools.partial(self.decay, channels)
        return _CircularFilter.apply(
            self.readout[:, channels], self.features, self.skip[channels], self._reverse_features, decay, size
        )

    @functools.cached_property
    @torch.no_grad()
    def _reverse_features(self):
        """Of the lags -(length - 1) to -1; a constant for autograd."""
        return self.features[-1, :, :-1].flip(-1)


class _CircularFilter(torch.autograd.Function):
    """readout features * decay, and skip at lag 0, in the places of a circular filter; keeps nothing of that size."""

    @staticmethod
    def forward(ctx, readout, features, skip, reverse_features, decay, size):
        ctx.save_for_backward(readout, features, reverse_features)
        ctx.decay, length = decay, features.shape[-1]
        kernel, rates = readout.new_empty(readout.shape[1], size), decay()
        torch.mm(readout[0], features[0], out=kernel[:, :length]).mul_(rates)
        kernel[:, 0] += skip
        negative = length - 1 if len(readout) == 2 else 0
        kernel[:, length : size - negative] = 0
        if negative:
            torch.mm(readout[1], reverse_features, out=kernel[:, size - negative :]).mul_(rates[:, :negative].flip(-1))
        return kernel

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        readout, features, reverse_features = ctx.saved_tensors
        rates, length = ctx.decay(), features.shape[-1]
        to_readout, to_features = torch.zeros_like(readout), torch.zeros_like(features)
        product = grad[:, :length] * rates
        torch.mm(product, features[0].t(), out=to_readout[0])
        torch.mm(readout[0].t(), product, out=to_features[0])
        if len(readout) == 2 and length > 1:
            product = grad[:, 1 - length :] * rates[:, : length - 1].flip(-1)
            torch.mm(product, reverse_features.t(), out=to_readout[1])
            to_features[1, :, :-1] = torch.mm(readout[1].t(), product).flip(-1)
        return to_readout, to_features, grad[:, 0], None, None, None


class ImplicitFilter(nn.Module):
    """Filters k(n) = N(features(n)) exp(-time(n) rate), one network N per direction, with one frequency vector for all of them.

        N = Linear(order, channels, no bias) o sin o Linear o sin o Linear o sin o Linear(emb_dim, order),   sin(h) = sin(c f h)

    (Hyena, Poli et al. 2023, as trained in M2-BERT.) The filter of a shorter row is a prefix of the longest one. Filters and
    everything that is computed with them have at least float32 precision, whatever the dtype of the model or autocast.
    """

    def __init__(self, config):
        super().__init__()
        order, emb_dim, channels = config.filter_order, config.filter_emb_dim, config.hidden_size
        directions = 2 if config.bidirectional else 1
        self.config = config
        self.positions = nn.Parameter(torch.empty(config.max_position_embeddings, emb_dim))
        self.frequency = nn.Parameter(torch.empty(order))
        self.weight_in = nn.Parameter(torch.empty(directions, order, emb_dim))
        self.bias_in = nn.Parameter(torch.empty(directions, order))
        self.weight_mid = nn.Parameter(torch.empty(2, directions, order, order))
        self.bias_mid = nn.Parameter(torch.empty(2, directions, order))
        self.weight_out = nn.Parameter(torch.empty(directions, channels, order))
        self.skip = nn.Parameter(torch.empty(channels))
        stored = config.filter_decay == "stored"
        self.register_buffer("time", torch.empty(config.max_position_embeddings) if stored else None)
        self.register_buffer("rates", torch.empty(channels) if stored else None)

    def forward(self, length: int) -> FilterTaps:
        """The filters of rows of ``length`` tokens."""
        dtype = torch.promote_types(self.weight_in.dtype, torch.float32)
        with torch.autocast(self.weight_in.device.type, enabled=False):
            frequency = (self.config.filter_freq_scale * self.frequency.to(dtype))[:, None]
            h = self.positions[:length].to(dtype).t().expand(len(self.weight_in), -1, -1)
            h = self._sine_layer(h, self.weight_in, self.bias_in, frequency)
            for weight, bias in zip(self.weight_mid, self.bias_mid, strict=True):
                h = self._sine_layer(h, weight, bias, frequency)
            return FilterTaps(h, self.weight_out.to(dtype), self._decay(length, dtype), self.skip.to(dtype))

    @staticmethod
    def _sine_layer(h, weight, bias, frequency):
        """sin(f (W h + b)) of h ``(directions, in, length)``; f joins the weights, which are few."""
        h = torch.baddbmm(bias.to(h.dtype).unsqueeze(-1) * frequency, weight.to(h.dtype) * frequency, h)
        return torch.sin(h) if torch.is_grad_enabled() else torch.sin_(h)

    def _decay(self, length, dtype):
        device = self.weight_in.device
        if self.time is not None:
            times, rates = self.time[:length].to(dtype), self.rates.abs().to(dtype)
        else:
            times = lag_times(length, self.config.time_scale).to(device, dtype)
            rates = decay_rates(len(self.skip)).to(device, dtype)
        return lambda channels: torch.exp(-times * rates[channels, None])
