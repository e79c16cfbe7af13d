"""Energy adapter: low-rank weights that act only on candidate tokens, so that the language model stays bit-identical.

Every adapted linear layer y = W x of the decoder becomes y = W x + B A x for candidate rows and stays W x for true rows. The
weights belong to the energy (they are no part of the LM's state dict) and reach the layers through forward hooks.
"""

import functools

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .two_stream_attention import current_stream


class LowRankDelta(nn.Module):
    """x -> B A x, ``(..., in_features)`` -> ``(..., out_features)``; B starts at zero."""

    def __init__(self, in_features: int, out_features: int, rank: int):
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=False)
        self.down._monarc_init = "fan_in"
        self.up._monarc_init = "zeros"

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x.to(self.down.weight.device, self.down.weight.dtype)))


def attach_energy_adapter(decoder: nn.Module, rank: int, targets: str | list[str]) -> nn.ModuleDict:
    """Builds one `LowRankDelta` per targeted linear layer of ``decoder`` and hooks it to that layer.

    Args:
        rank: of every delta, positive.
        targets: ``"all-linear"`` or the last name components of the layers, e.g. ``["q_proj", "v_proj"]``.

    Returns:
        the deltas by layer name with dots replaced by underscores.

    Raises:
        ValueError: a target matches no linear layer (the message lists those that exist).
    """
    linears = {name: module for name, module in decoder.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    suffixes = {name.rsplit(".", 1)[-1] for name in linears}
    if targets != "all-linear":
        unknown = sorted(set(targets) - suffixes)
        if unknown:
            raise ValueError(
                f"energy_adapter_targets {unknown} match no linear layer of {type(decoder).__name__}; it has {sorted(suffixes)}."
            )
        linears = {name: module for name, module in linears.items() if name.rsplit(".", 1)[-1] in targets}
    deltas = nn.ModuleDict()
    for name, module in linears.items():
        in_features, out_features = _features(module)
        delta = LowRankDelta(in_features, out_features, rank)
        # a partial, not a closure: copy.deepcopy of the model then binds the copied layer to the copied delta
        module.register_forward_hook(functools.partial(_add_delta, delta))
        deltas[name.replace(".", "_")] = delta
    return deltas


def _features(module):
    if isinstance(module, Conv1D):
        return module.weight.shape
    return module.in_features, module.out_features


def _add_delta(delta, module, args, output):
    stream = current_stream()
    if stream is None or stream.adapter_rows is None:
        return None
    rows, x = stream.adapter_rows, args[0]
    if rows == slice(None):
        return output + delta(x).to(output.device, output.dtype)
    split = (-1, rows.stop)  # batch and sequence: some layers (OPT's) see them flattened into one
    kept = output.reshape(*split, output.shape[-1])
    added = delta(x.reshape(*split, x.shape[-1])[:, rows]).to(output.device, output.dtype)
    return torch.cat([kept[:, : rows.start], kept[:, rows] + added], 1).view(output.shape)
