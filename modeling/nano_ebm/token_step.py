"""One more token for every row of a cached, unpadded batch, in few operations: what `generate` does most.

A model of this size spends its time on starting operations, not on arithmetic. `TokenStep` computes the same states, cache
entries and energy as the modules do, on ``(batch, hidden)`` rows, with the projections of the last state in one product.

Shapes: batch, hidden, heads, width, keys = tokens so far.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from .attention_layout import AttentionLayout
from .free_energy import FreeEnergyField, FreeEnergyTerms
from .refinement_output import Context
from .trunk import Block, SelfAttention, Trunk, rotary_angles, rotate, split_heads


PLAIN = {
    Trunk,
    Block,
    SelfAttention,
    FreeEnergyTerms,
    nn.Linear,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Embedding,
    nn.ModuleList,
}
TERMS = {"unit_in", "unit_out", "unit_context", "memory_query", "memory_key", "memory_token", "memory_value"}
TABLE_ROWS = 1024  # vocabulary up to which the memory's values are computed once per token, not at every step


class TokenStep:
    """The weights of a model, laid out for one token at a time; they must not change while it is used.

    Args:
        model: a `NanoEBMForRefinement` for which `serves` is true.
    """

    @torch.no_grad()
    def __init__(self, model):
        trunk, terms = model.trunk, model.energy
        self.config, self.heads = model.config, model.config.num_attention_heads
        self.readout = model.readout().weight
        self.tokens = trunk.token_embedding.weight
        self.positions = None if trunk.position_embedding is None else trunk.position_embedding.weight
        self.blocks = [
            (_norm(block.norm_1), _linear(block.attention.qkv), _linear(block.attention.out),
             _norm(block.norm_2), _linear(block.up), _linear(block.down))
            for block in trunk.blocks
        ]  # fmt: skip
        self.norm = _norm(trunk.norm)
        self.terms, self.memory_heads = terms, 0 if terms is None else terms.heads
        self.widths, self.projections = _joined_projections(terms)
        self.value_table = None
        if self.memory_heads and len(self.readout) <= TABLE_ROWS:
            self.value_table = self._values(self.readout)
        self.unpadded = None  # whether the batch has no padding: found out once, by `generate`
        self.thinking = {}  # arguments -> what `NanoEBMForRefinement` made of them

    @staticmethod
    def serves(model) -> bool:
        """Whether ``model`` has the plain modules that are read here: no adapters, hooks, quantisation, language model."""
        if model.training or model.trunk is None or model.config.use_soft_tokens:
            return False
        if model.energy is not None and not dict(model.energy.named_children()).keys() <= TERMS:
            return False
        modules = [*model.trunk.modules(), model.readout(), *([] if model.energy is None else model.energy.modules())]
        weights = [parameter for module in modules for parameter in module.parameters(recurse=False)]
        return (
            all(type(module) in PLAIN and not _is_hooked(module) for module in modules)
            and model.readout().bias is None
            and len({(weight.dtype, weight.device) for weight in weights}) == 1
            and weights[0].dtype in (torch.float32, torch.float64)
        )

    def fits(self, input_ids: Tensor | None, cache, *others) -> bool:
        """Whether this call is one more token per row after a cache; ``others``: arguments that must be absent."""
        return (
            input_ids is not None
            and input_ids.ndim == 2
            and input_ids.shape[1] == 1
            and type(cache) is DynamicCache
            and len(cache.layers) >= len(self.blocks) + bool(self.memory_heads)
            and 0 < cache.get_seq_length() < (len(self.positions) if self.positions is not None else math.inf)
            and all(other is None or other is False for other in others)
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled(input_ids.device.type)
        )

    def __call__(self, input_ids: Tensor, cache: DynamicCache) -> tuple[Context, FreeEnergyField]:
        """The tokens ``(batch, 1)`` go into ``cache``; returns what is known about the next ones."""
        past, ids = cache.get_seq_length(), input_ids.view(-1)
        layout = AttentionLayout(None, None, False, None, past + 1)
        x, rotation = torch.embedding(self.tokens, ids), None
        if self.positions is None:
            rotation = rotary_angles(torch.full((1, 1), past, device=x.device), self.config, x.dtype)
        else:
            x = x + self.positions[past]
        for index, block in enumerate(self.blocks):
            x = self._block(x, block, rotation, cache, index)
        x = self.norm(x)
        field = self._field(x, ids, cache)
        return Context(layout, None, [x.unsqueeze(1)], None, cache, slice(-1, None)), field

    def _block(self, x, block, rotation, cache, index):
        norm_1, qkv, out, norm_2, up, down = block
        batch, hidden = x.shape
        query, key, value = qkv(norm_1(x)).view(batch, 3, self.heads, 1, hidden // self.heads).unbind(1)
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        attended = F.scaled_dot_product_attention(query, *cache.update(key, value, index))
        x = out(attended.reshape(batch, hidden)).add_(x)
        return down(F.gelu(up(norm_2(x)))).add_(x)

    def _field(self, x, ids, cache):
        """See `FreeEnergyTerms.field`; slot j has the state of token j - 1 and the rows of token j, slot 0 is the sink."""
        terms, hidden = self.terms, x.unsqueeze(1)
        if terms is None:
            return FreeEnergyField(hidden, self.readout)
        parts = {"power": terms.power, "feedback": terms.feedback}
        projected = list(self.projections(x).split(self.widths, -1)) if self.widths else []
        recent = None
        if self.memory_heads:
            key, query = projected[:2]
            keys, values = self._memories(key, ids, cache)
            width = keys.shape[-1]
            if terms.unit_context is not None:
                recent = self._recent(values[..., 2 * width :])
            keys, values = keys.flatten(0, 1)[:, :-1], values.flatten(0, 1)[:, 1:]
            if terms.memory_token is not None:
                keys = keys + values[..., width : 2 * width]
            scores = torch.bmm(query.reshape(-1, 1, width), keys.transpose(1, 2))
            parts.update(scores=F.pad(scores, (1, 0)), values=F.pad(values[..., :width], (0, 0, 1, 0)))
        if terms.unit_in is not None:
            drive = projected[-1]
            if recent is not None:
                drive = torch.addmm(drive, recent, terms.unit_context.weight.t())
            parts.update(unit_drive=drive.unsqueeze(1), unit_out=terms.unit_out.weight)
        return FreeEnergyField(hidden, self.readout, **parts)

    def _memories(self, key, ids, cache):
        shape = len(ids), self.memory_heads, 1, -1
        if self.value_table is None:
            value = self._values(torch.embedding(self.readout, ids))
        else:
            value = torch.embedding(self.value_table, ids)
        return cache.update(key.reshape(shape), value.view(shape), len(self.blocks))

    def _values(self, token_rows):
        """`FreeEnergyTerms.memories`' values for rows ``(tokens, hidden)``, head after head, ``(tokens, heads * width')``."""
        parts = [split_heads(part, self.memory_heads) for part in self.terms.token_values(token_rows.unsqueeze(0))]
        return torch.cat(parts, -1).squeeze(0).transpose(0, 1).flatten(1)

    def _recent(self, rows):
        """Of rows ``(batch, heads, keys, width)`` the last, latest first, as `recent_rows` has them: the first token has none."""
        count, keys = self.terms.context, rows.shape[2]
        last = rows[:, :, max(1, keys - count) :].flip(2).transpose(1, 2).flatten(1)
        missing = max(0, count - keys + 1)
        return F.pad(last, (0, missing * rows.shape[1] * rows.shape[3])) if missing else last


def _is_hooked(module):
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _norm(module):
    width, eps = tuple(module.normalized_shape), module.eps
    if isinstance(module, nn.RMSNorm):
        return lambda x: F.rms_norm(x, width, module.weight, eps)
    weight, bias = module.weight, module.bias
    return lambda x: torch.layer_norm(x, width, weight, bias, eps)


def _linear(module):
    return _product(module.weight, module.bias)


def _product(weight, bias):
    transposed = weight.t()
    if bias is None:
        return lambda x: torch.mm(x, transposed)
    return lambda x: torch.addmm(bias, x, transposed)


def _joined_projections(terms):
    """(widths, product) of memory keys, scaled memory queries and unit drives of the last state, in this order."""
    layers = []
    if terms is not None and terms.heads:
        width = terms.memory_query.out_features // terms.heads
        layers += [(terms.memory_key, 1.0), (terms.memory_query, 1 / math.sqrt(width))]
    if terms is not None and terms.unit_in is not None:
        layers.append((terms.unit_in, 1.0))
    if not layers:
        return [], None
    weight = torch.cat([layer.weight * scale for layer, scale in layers])
    zeros = weight.new_zeros
    bias = torch.cat([zeros(len(x.weight)) if x.bias is None else x.bias * scale for x, scale in layers])
    return [len(layer.weight) for layer, _ in layers], _product(weight, bias)
