"""What `NanoEBMForRefinement` returns, and what one of its forward passes knows before thinking."""

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import ModelOutput

from .attention_layout import AttentionLayout


@dataclass
class NanoEBMOutput(ModelOutput):
    """Output of `NanoEBMForRefinement`.

    The scalars are sums over the counted targets divided by ``num_items_in_batch`` when that is given, else by the number of
    counted targets.

    Attributes:
        loss: what is minimised in training, see `NanoEBMConfig`; nats/token.
        nll_s1, nll_s2: cross-entropy of system 1 and after the last step, nats/token; nll_s2 is None without thinking.
        contrastive_loss, info_nce_loss: before their weights, nats/token; None when off.
        logits: of the refined prediction, ``(batch, query, vocab)``; -inf outside ``think_topk``.
        s1_logits: of system 1, of the same shape.
        energies: free energy of the prediction at the start and after each step, ``(steps + 1, batch, query)``, nats: that of
            position t is about the token at t + 1.
        trajectory: logits at the start and after each step, ``(steps + 1, batch, query, vocab)``; all but the start are centred.
        target_mask: with labels: positions whose prediction is counted, boolean ``(batch, seq)``.
        past_key_values: with a cache.
    """

    loss: Tensor | None = None
    nll_s1: Tensor | None = None
    nll_s2: Tensor | None = None
    contrastive_loss: Tensor | None = None
    info_nce_loss: Tensor | None = None
    logits: Tensor | None = None
    s1_logits: Tensor | None = None
    energies: Tensor | None = None
    trajectory: Tensor | None = None
    target_mask: Tensor | None = None
    past_key_values: object | None = None
    hidden_states: tuple | None = None

    def __setattr__(self, name, value):
        # as ModelOutput's, which collects all names anew at each assignment: a noticeable part of a generated token
        if value is not None and name in self.__dataclass_fields__:
            OrderedDict.__setitem__(self, name, value)
        object.__setattr__(self, name, value)


@dataclass
class Context:
    """One forward pass up to the energy.

    Attributes:
        layout: masks and positions of the batch.
        embeds: token embeddings ``(batch, seq, hidden)``; None with a language model as the trunk.
        states: of the trunk, the last one normed, each ``(batch, seq, hidden)``.
        memories: (keys, values) of all tokens so far, ``(batch, heads, keys, width)`` each; None without memory.
        cache: or None.
        kept: positions to predict at.
    """

    layout: AttentionLayout
    embeds: Tensor | None
    states: list[Tensor]
    memories: tuple[Tensor, Tensor] | None
    cache: DynamicCache | None
    kept: slice | Tensor
