"""Convolution filters as the output of a small network of the lag (Hyena), in two directions at once."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
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
        features: last layer of the filter network, ``(directions, length, order)``.
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
        taps = torch.matmul(self.readout[:, channels], self.features.transpose(1, 2)) * self.decay(channels)
        skip = self.skip[channels]
        if not torch.is_grad_enabled():
            taps[0, :, 0] += skip
            return taps
        first = torch.zeros_like(taps[:, :, 0])
        first = torch.cat([skip[None], first[1:]]) if len(first) > 1 else skip[None]
        return torch.cat([taps[:, :, :1] + first[:, :, None], taps[:, :, 1:]], -1)


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
            frequency = self.config.filter_freq_scale * self.frequency.to(dtype)
            h = self.positions[:length].to(dtype).expand(len(self.weight_in), -1, -1)
            h = self._sine_layer(h, self.weight_in, self.bias_in, frequency)
            for weight, bias in zip(self.weight_mid, self.bias_mid, strict=True):
                h = self._sine_layer(h, weight, bias, frequency)
            return FilterTaps(h, self.weight_out.to(dtype), self._decay(length, dtype), self.skip.to(dtype))

    @staticmethod
    def _sine_layer(h, weight, bias, frequency):
        h = torch.baddbmm(bias.to(h.dtype)[:, None], h, weight.to(h.dtype).transpose(1, 2))
        return torch.sin(h * frequency)

    def _decay(self, length, dtype):
        device = self.weight_in.device
        if self.time is not None:
            times, rates = self.time[:length].to(dtype), self.rates.abs().to(dtype)
        else:
            times = lag_times(length, self.config.time_scale).to(device, dtype)
            rates = decay_rates(len(self.skip)).to(device, dtype)
        return lambda channels: torch.exp(-times * rates[channels, None])
