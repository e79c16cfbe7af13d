"""The tokens emitted so far and their alternatives: several next tokens run side by side over one shared key-value cache."""

from contextlib import contextmanager

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from .backbone import run_decoder
from .residual_energy import clamp_energy
from .two_stream_attention import Stream


MASKED_ATTENTION = ("sdpa", "eager")


class BranchingLayer(DynamicLayer):
    """One layer of a key-value cache whose next place can hold several alternatives.

    A view on ``layer``, a `DynamicLayer`, which stays valid between steps. Keys and values lie in storage with room to spare,
    enlarged by a quarter when it is full: a step writes its few rows, where `DynamicLayer` would copy the whole cache.
    """

    def __init__(self, layer: DynamicLayer):
        super().__init__()
        self.layer = layer
        self.is_initialized = True
        self.storage = (layer.keys, layer.values)  # each (batch, heads, capacity >= length, head_dim)

    def get_seq_length(self) -> int:
        return self.layer.get_seq_length()

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        """Keys and values of prefix and alternatives, ``(batch, heads, length + rows, head_dim)``; the prefix stays as it is."""
        length = self.get_seq_length()
        end = length + key_states.shape[-2]
        if end > self.storage[0].shape[-2]:
            self.storage = tuple(_with_room(states, length, end + end // 4 + 64) for states in self.storage)
        for states, new in zip(self.storage, (key_states, value_states), strict=True):
            states[:, :, length:end] = new
        return tuple(states[:, :, :end] for states in self.storage)

    def keep(self, chosen: Tensor) -> None:
        """Appends alternative ``chosen`` ``(batch,)`` to the prefix."""
        length, chosen = self.get_seq_length(), chosen.to(self.storage[0].device)
        batch = torch.arange(chosen.shape[0], device=chosen.device)
        for states in self.storage:
            states[:, :, length] = states[batch, :, length + chosen]
        self.layer.keys, self.layer.values = (states[:, :, : length + 1] for states in self.storage)


def _with_room(states, length, capacity):
    roomy = states.new_empty(*states.shape[:2], capacity, states.shape[-1])
    roomy[:, :, :length] = states[:, :, :length]
    return roomy


class SharedPrefix:
    """A batch of prefixes in a key-value cache, extended by one token at a time, chosen among several.

    `branch` runs the alternatives for the next place through the trunk in one forward pass. Row j attends to the prefix and to
    itself, all rows at the same position,

        visible(j) = {prefix without padding} + {j},

    so its state equals that of a plain forward pass over prefix + token. `keep` leaves one row's keys and values in the cache
    and its state as the start of the next step: nothing runs twice.

    With an energy adapter every token has two rows in that same pass: a plain one, which is the language model's and can be
    kept, and an adapted one, which gives the energy.

    Args:
        model: a `MonArcForCausalLM`.
        prefill: its output for the prompt, with ``logits``, ``final_state`` and ``past_key_values``.
        attention_mask: 1 = token, 0 = padding, ``(batch, prompt)``; None = no padding.
        position_ids: of the prompt, ``(batch or 1, prompt)``.
    """

    def __init__(self, model, prefill, attention_mask: Tensor | None, position_ids: Tensor):
        self.model = model
        self.cache = Cache(layers=[BranchingLayer(layer) for layer in prefill.past_key_values.layers])
        self.prompt_mask = None if attention_mask is None else attention_mask.bool()
        self.position = position_ids[:, -1:] + 1  # of the next token, (batch or 1, 1)
        self.state = prefill.final_state  # of the last token before the final norm, (batch, 1, hidden)
        self.hidden_states = prefill.hidden_states
        self._logits = prefill.logits[:, -1]
        self._branches = None

    def logits(self) -> Tensor:
        """LM logits of the next token, ``(batch, vocab)``, in float32 or better: the head runs on the kept row alone."""
        if self._logits is None:
            self._logits = self.model.lm.get_output_embeddings()(self._normed)
        logits = self._logits
        return logits if logits.dtype == torch.float64 else logits.float()

    def branch(self, tokens: Tensor, log_probs: Tensor) -> Tensor:
        """Energies of alternative next tokens, ``(batch, width)``, nats: one trunk forward of that width (twice with an adapter).

        Args:
            tokens: ``(batch, width)``.
            log_probs: of these tokens under the language model, ``(batch, width)``.
        """
        model, width = self.model, tokens.shape[1]
        adapted = model.energy_adapter is not None
        rows = torch.cat([tokens, tokens], 1) if adapted else tokens
        stream = Stream("plain", adapter_rows=slice(width, 2 * width) if adapted else None)
        with _masked_attention(model.lm.get_decoder().config) as implementation:
            out, state = run_decoder(
                model.lm, stream, input_ids=rows, attention_mask=self._visible(rows, implementation),
                position_ids=self.position.expand(rows.shape), past_key_values=self.cache, use_cache=True,
                output_hidden_states=self.hidden_states is not None,
            )  # fmt: skip
        self._branches = (out.last_hidden_state, state, out.hidden_states)
        energies = model.energy_head(self.state, state[:, -width:], log_probs.to(state.device))
        return clamp_energy(energies, model.config.energy_bound)

    def _visible(self, rows, implementation):
        """4-D mask of `branch`, ``(batch, 1, rows, length + rows)``: boolean for sdpa, additive for eager attention."""
        (batch, count), length = rows.shape, self.cache.get_seq_length()
        visible = torch.ones(batch, 1, count, length + count, dtype=torch.bool, device=rows.device)
        if self.prompt_mask is not None:
            visible[..., : self.prompt_mask.shape[1]] = self.prompt_mask[:, None, None]
        visible[..., length:] = torch.eye(count, dtype=torch.bool, device=rows.device)
        if implementation != "eager":
            return visible
        dtype = self.state.dtype
        return torch.zeros(visible.shape, dtype=dtype, device=rows.device).masked_fill_(
            ~visible, torch.finfo(dtype).min
        )

    def keep(self, chosen: Tensor) -> None:
        """Makes row ``chosen`` ``(batch,)`` of the last `branch` part of the prefix and forgets the others."""
        for layer in self.cache.layers:
            layer.keep(chosen)
        normed, state, hidden_states = self._branches
        self._normed, self._logits, self._branches = _rows(normed, chosen)[:, 0], None, None
        self.state = _rows(state, chosen)
        if self.hidden_states is not None:
            self.hidden_states = tuple(_rows(layer, chosen) for layer in hidden_states)
        self.position = self.position + 1


def _rows(states, chosen):
    """``(batch, rows, hidden)`` -> the chosen row of each, ``(batch, 1, hidden)``."""
    index = chosen.to(states.device).view(-1, 1, 1).expand(-1, 1, states.shape[-1])
    return states.gather(1, index)


@contextmanager
def _masked_attention(config):
    """The attention implementation of a `SharedPrefix.branch`: the decoder's own if it takes 4-D masks, else sdpa meanwhile."""
    implementation = config._attn_implementation
    if implementation in MASKED_ATTENTION:
        yield implementation
        return
    config._attn_implementation = "sdpa"
    try:
        yield "sdpa"
    finally:
        config._attn_implementation = implementation
