"""Checks of what goes into the encoder, and the layout of its rows under padding."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def check_inputs(config, input_ids, inputs_embeds, attention_mask, token_type_ids, position_ids) -> tuple[int, int]:
    """Shape ``(batch, seq)`` of the rows.

    Raises:
        ValueError, TypeError: not exactly one of input_ids and inputs_embeds, a wrong shape or dtype, an id outside its table.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give input_ids or inputs_embeds, one of them.")
    if inputs_embeds is not None and (inputs_embeds.ndim != 3 or inputs_embeds.shape[2] != config.hidden_size):
        raise ValueError(
            f"inputs_embeds must be (batch, seq, hidden_size = {config.hidden_size}), got {tuple(inputs_embeds.shape)}."
        )
    if input_ids is not None and input_ids.ndim != 2:
        raise ValueError(f"input_ids must be (batch, seq), got {tuple(input_ids.shape)}.")
    shape = input_ids.shape if input_ids is not None else inputs_embeds.shape[:2]
    for name, value in {"attention_mask": attention_mask, "token_type_ids": token_type_ids}.items():
        if value is not None and value.shape != shape:
            raise ValueError(f"{name} must be (batch, seq) = {tuple(shape)}, got {tuple(value.shape)}.")
    if position_ids is not None and (position_ids.ndim != 2 or position_ids.shape[1] != shape[1]):
        raise ValueError(f"position_ids must be (batch or 1, seq = {shape[1]}), got {tuple(position_ids.shape)}.")
    tables = {
        "input_ids": (input_ids, config.vocab_size, "vocab_size"),
        "token_type_ids": (token_type_ids, config.type_vocab_size, "type_vocab_size"),
        "position_ids": (position_ids, config.max_position_embeddings, "max_position_embeddings"),
    }
    for name, (ids, rows, field) in tables.items():
        _check_ids(name, ids, rows, field)
    return shape


def _check_ids(name, ids, rows, field):
    if ids is None or torch.compiler.is_compiling():
        return
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {ids.dtype}.")
    if ids.device.type == "cpu" and ids.numel():  # elsewhere it would make the host wait
        low, high = ids.aminmax()
        if low < 0 or high >= rows:
            raise ValueError(f"{name} must be in [0, {field}) = [0, {rows}), got {int(low if low < 0 else high)}.")


@dataclass
class RowLayout:
    """Where each token of the input stands in the encoder's rows.

    Attributes:
        seq: tokens per row of the input.
        length: tokens per row of the encoder.
        order: places in the input, tokens first, then padding, ``(batch, seq)``; None = as they are.
        start: columns on the left that are padding in every row, and are left out.
        mask: what the mixers multiply by, ``(batch, length)``; None = nothing.
        first: place of each row's first token in the input, ``(batch,)``; None = 0.
        tokens: attention mask of the input; None = all ones.
    """

    seq: int
    length: int
    order: Tensor | None = None
    start: int = 0
    mask: Tensor | None = None
    first: Tensor | None = None
    tokens: Tensor | None = None

    def arrange(self, x: Tensor, padding) -> Tensor:
        """``(batch, seq, ...)`` in the encoder's order; ``padding`` (a number, or a tensor ``(...)``) where there is no token."""
        if self.order is not None:
            order, trailing = self.order[:, : self.length], [1] * (x.ndim - 2)
            is_token = self.tokens.gather(1, order)
            x = x.gather(1, order.view(*order.shape, *trailing).expand(-1, -1, *x.shape[2:]))
            x = torch.where(is_token.view(*order.shape, *trailing), x, padding)
        x = x[:, self.start : self.start + self.length]
        missing = self.length - x.shape[1]
        if missing > 0:
            tail = torch.as_tensor(padding, dtype=x.dtype, device=x.device).expand(len(x), missing, *x.shape[2:])
            x = torch.cat([x, tail], 1)
        return x

    def restore(self, states: Tensor) -> Tensor:
        """States ``(batch, length, hidden)`` of the encoder in the order of the input, ``(batch, seq, hidden)``."""
        if self.order is None:
            states = states[:, : self.seq]
            after = self.seq - self.start - states.shape[1]
            return F.pad(states, (0, 0, self.start, after)) if self.start or after else states
        places = torch.argsort(self.order, dim=1).clamp(max=self.length - 1)
        return states.gather(1, places.unsqueeze(-1).expand(-1, -1, states.shape[-1]))

    def position_ids(self, device) -> Tensor:
        """Positions of the encoder's rows: 0, 1, ... over the tokens, ``(1 or batch, length)``."""
        if self.mask is not None:
            return (self.mask.long().cumsum(1) - 1).clamp(min=0)
        return torch.arange(self.length, device=device).unsqueeze(0)


def row_layout(config, attention_mask: Tensor | None, seq: int) -> RowLayout:
    """The layout that ``config.padding_mode`` asks for.

    Raises:
        ValueError: a row too long, a row of nothing but padding.
    """
    target = config.reference_length
    tokens = _tokens(attention_mask)
    if tokens is None or (config.padding_mode == "reference" and not target):
        _check_length(config, seq)
        return RowLayout(seq, max(seq, target), tokens=tokens)
    first = tokens.int().argmax(1)
    if config.padding_mode == "mask":
        start, end = _used_columns(tokens)
        _check_length(config, end - start)
        mask = tokens[:, start:end]
        return RowLayout(seq, end - start, None, start, mask, first, tokens)
    length = max(seq, target)
    if seq > target:  # padding beyond the target is dropped
        length = max(target, int(tokens.sum(1).max()))
        _check_length(config, length)
    order = torch.argsort((~tokens).byte(), dim=1, stable=True)
    return RowLayout(seq, length, order, 0, None, first, tokens)


def _tokens(attention_mask):
    """The mask as booleans; None where it says nothing."""
    if attention_mask is None:
        return None
    tokens = attention_mask.bool()
    if torch.compiler.is_compiling() or tokens.device.type != "cpu":
        return tokens
    if tokens.all():
        return None
    empty = (~tokens.any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"attention_mask is 0 for the whole of row {empty[0]}: a row needs at least one token; leave empty texts out, or let "
            "the tokenizer add its special tokens."
        )
    return tokens


def _used_columns(tokens):
    """First and last column, exclusive, where any row has a token; all of them where finding out would make the host wait."""
    if torch.compiler.is_compiling() or tokens.device.type != "cpu":
        return 0, tokens.shape[1]
    used = tokens.any(0).nonzero()
    return int(used[0]), int(used[-1]) + 1


def _check_length(config, length):
    limit = config.max_position_embeddings
    if length > limit:
        raise ValueError(
            f"rows of {length} tokens are longer than max_position_embeddings = {limit}; truncate them "
            "(truncation=True, max_length=...), or extend the model with extend_context."
        )
