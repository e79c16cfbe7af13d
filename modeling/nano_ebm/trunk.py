"""The trunk: a pre-norm GPT as published (fused qkv, erf-GELU, learned positions), with RMSNorm and rotary positions as options.

Shapes: batch, seq, hidden, heads, width = hidden / heads; keys = tokens seen so far, cached ones included.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention_layout import AttentionLayout


class SelfAttention(nn.Module):
    """Causal multi-head softmax attention with one projection for queries, keys and values (rows in this order)."""

    def __init__(self, config):
        super().__init__()
        self.heads, self.dropout = config.num_attention_heads, config.dropout
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.use_bias)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=config.use_bias)

    def forward(self, x: Tensor, layout: AttentionLayout, rotation=None, cache=None, cache_layer: int = 0) -> Tensor:
        """``(batch, seq, hidden)`` -> the same; keys and values go to layer ``cache_layer`` of ``cache`` and come from it."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        if cache is not None:
            key, value = cache.update(key, value, cache_layer)
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=layout.mask, is_causal=layout.is_causal,
            dropout_p=self.dropout if self.training else 0.0,
        )  # fmt: skip
        return self.out(merge_heads(attended))


class Block(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config):
        super().__init__()
        self.norm_1, self.norm_2 = make_norm(config), make_norm(config)
        self.attention = SelfAttention(config)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.use_bias)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.use_bias)
        self.dropout = config.dropout

    def forward(self, x: Tensor, layout: AttentionLayout, rotation=None, past_key_values=None, cache_layer: int = 0):
        """``(batch, seq, hidden)`` -> the same."""
        attended = self.attention(self.norm_1(x), layout, rotation, past_key_values, cache_layer)
        x = x + dropped(self, attended)
        return x + dropped(self, self.down(F.gelu(self.up(self.norm_2(x)))))


class Trunk(nn.Module):
    """Embeddings, blocks and a final norm: tokens to states."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        learned = config.position_type == "learned"
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size) if learned else None
        self.dropout = config.dropout
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.num_hidden_layers)])
        self.norm = make_norm(config)
        self.feedback = None
        if config.use_soft_tokens is True:
            self.feedback = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
            self.feedback._nano_ebm_init = "zeros"

    def forward(self, embeds: Tensor, layout: AttentionLayout, cache=None, first_cache_layer: int = 0) -> list[Tensor]:
        """States after the embedding and after each block, the last one normed, each ``(batch, seq, hidden)``.

        Args:
            embeds: token embeddings or mixtures of them, ``(batch, seq, hidden)``.
            cache: of keys and values; block i uses its layer ``first_cache_layer + i``.
        """
        rotation = None
        if self.position_embedding is None:
            rotation = rotary_angles(layout.position_ids, self.config, embeds.dtype)
        else:
            embeds = embeds + self.position_embedding(layout.position_ids)
        states = [dropped(self, embeds)]
        for index, block in enumerate(self.blocks):
            states.append(
                block(states[-1], layout, rotation, past_key_values=cache, cache_layer=first_cache_layer + index)
            )
        states[-1] = self.norm(states[-1])
        return states


class TrunkPlans:
    """How transformers shards the model: the own trunk block by block, another language model by its plans.

    The output embedding is read outside its own forward pass, so it stays whole, as do the energies: replicated under tensor
    parallelism, in the outermost group under FSDP. The own trunk, whose queries, keys and values share one matrix, has no tensor
    plan; there is no pipeline plan.
    """

    def init_parallel_plans(self) -> None:
        """Called by transformers when the model is built."""
        super().init_parallel_plans()
        present = {type(module).__name__ for module in self.modules()}
        self._no_split_modules = [name for name in type(self)._no_split_modules if name in present]
        self._pp_plan = {}
        if self.trunk is not None:
            plan = self.config.base_model_fsdp_plan
            self._fsdp_plan |= {f"{self.base_model_prefix}.{name}": style for name, style in plan.items()}
            return
        whole = [self.get_output_embeddings()]
        if self.lm.config.get_text_config().tie_word_embeddings:
            whole.append(self.get_input_embeddings())
        names = {name for name, module in self.named_modules() if any(module is each for each in whole)}
        self._tp_plan = {name: style for name, style in self._tp_plan.items() if name not in names}
        self._fsdp_plan = {name: style for name, style in self._fsdp_plan.items() if name not in names}


def make_norm(config) -> nn.Module:
    """The configured norm over the hidden axis."""
    if config.norm_type == "rmsnorm":
        return nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.use_bias)


def dropped(layer: nn.Module, x: Tensor) -> Tensor:
    """x with dropout of rate ``layer.dropout`` in training."""
    return F.dropout(x, layer.dropout) if layer.training and layer.dropout else x


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``(batch, seq, hidden)`` -> ``(batch, heads, seq, width)``."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """``(batch, heads, seq, width)`` -> ``(batch, seq, hidden)``."""
    return x.transpose(1, 2).flatten(2)


def rotary_angles(position_ids: Tensor, config, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of position / theta^(2i / width) (Su et al. 2021), ``(batch or 1, 1, seq, width / 2)``.

    Computed at each call, in float32: a buffer would have to be refilled by every loader.
    """
    width = config.hidden_size // config.num_attention_heads
    exponents = torch.arange(0, width, 2, device=position_ids.device, dtype=torch.float32) / width
    angles = position_ids[:, None, :, None].float() / config.rope_theta**exponents
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the pairs (x_i, x_{i + width/2}) of ``(batch, heads, seq, width)`` by their position's angle."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)
