"""Embeddings, the stack of layers, and the pooler."""

import torch
from torch import Tensor, nn

from .configuration_m2_bert import M2BertConfig
from .encoder_inputs import RowLayout
from .encoder_layer import M2BertLayer


class M2BertEmbeddings(nn.Module):
    """LayerNorm(word + token type + position), dropout."""

    def __init__(self, config: M2BertConfig):
        super().__init__()
        hidden = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, hidden, padding_idx=config.pad_token_id)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, hidden)
        self.position_embeddings = (
            nn.Embedding(config.max_position_embeddings, hidden) if config.use_position_embeddings else None
        )
        self.norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, layout: RowLayout, input_ids, inputs_embeds=None, token_type_ids=None, position_ids=None
    ) -> Tensor:
        """States of the encoder's rows, ``(batch, length, hidden)``; see `RowLayout`."""
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        padding = self.word_embeddings.weight[self.word_embeddings.padding_idx or 0].to(words.dtype)
        states = layout.arrange(words, padding)
        types = torch.zeros_like(states[..., 0], dtype=torch.long)
        if token_type_ids is not None:
            types = layout.arrange(token_type_ids, 0)
        states = states + self.token_type_embeddings(types)
        if self.position_embeddings is not None:
            places = layout.position_ids(states.device) if position_ids is None else layout.arrange(position_ids, 0)
            states = states + self.position_embeddings(places)
        return self.dropout(self.norm(states))


class M2BertEncoder(nn.Module):
    """The layers, between two changes of layout."""

    def __init__(self, config: M2BertConfig):
        super().__init__()
        self.layers = nn.ModuleList(M2BertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, states: Tensor, mask: Tensor | None, output_hidden_states: bool) -> tuple[Tensor, tuple | None]:
        """States ``(batch, length, hidden)`` -> the last ones, and all of them if asked for."""
        x = states.permute(2, 0, 1).contiguous()
        every = [states]
        for layer in self.layers:
            x = layer(x, mask)
            if output_hidden_states:
                every.append(x.permute(1, 2, 0))
        return x.permute(1, 2, 0).contiguous(), tuple(every) if output_hidden_states else None


class M2BertPooler(nn.Module):
    """One vector per row: the first token's state or the mean over the tokens, then dense and tanh if configured."""

    def __init__(self, config: M2BertConfig):
        super().__init__()
        self.pooling = config.pooling
        self.dense = nn.Linear(config.hidden_size, config.hidden_size) if config.pool_with_dense else None

    def forward(self, states: Tensor, layout: RowLayout) -> Tensor:
        """``(batch, seq, hidden)`` -> ``(batch, hidden)``."""
        if self.pooling == "mean":
            pooled = states.mean(1) if layout.tokens is None else _masked_mean(states, layout.tokens)
        elif layout.first is None:
            pooled = states[:, 0]
        else:
            pooled = states[torch.arange(len(states), device=states.device), layout.first]
        return pooled if self.dense is None else torch.tanh(self.dense(pooled))


def _masked_mean(states, tokens):
    weights = tokens.to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)
