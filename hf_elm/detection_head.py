"""The machine-text detector's head: every token has a weight, and the weighted mean of what the tokens say decides.

    a_t = softmax over the tokens of g(x_t, s_t),    z = sum_t a_t v(x_t),    P(machine) = sigmoid(w z + b)

after Perplexity Attention Weighted Networks (Miralles-Gonzalez et al. 2025, arXiv:2501.03940), with x_t the
standardised features of token t and s_t its hidden state, if that is read. Here g is a network of one hidden layer
with one output per attention head, v is x_t beside a hidden layer of it, and g starts at 0: an untrained head weighs
all tokens alike.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from .detection_features import TextFeatures


CONFIG, WEIGHTS = "head.json", "head.safetensors"
LARGEST = 8.0  # standard deviations; outliers are cut there


@dataclass
class HeadConfig:
    """Shape of `AttentionWeightedHead`.

    Attributes:
        columns: names of the features it reads, in order.
        state_size: width of the hidden states; 0 = not read.
        hidden_size: width of the hidden layers.
        num_heads: sets of weights; 0 = all tokens weigh alike.
        dropout: of hidden layers, states and the pooled features.
    """

    columns: tuple[str, ...]
    state_size: int = 0
    hidden_size: int = 32
    num_heads: int = 2
    dropout: float = 0.1


class AttentionWeightedHead(nn.Module):
    """Logit of "machine-made" of texts given as token features."""

    mean: Tensor  # (columns,); of the training texts
    std: Tensor  # (columns,)

    def __init__(self, config: HeadConfig):
        super().__init__()
        self.config = config
        columns, hidden = len(config.columns), config.hidden_size
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("std", torch.ones(columns))
        self.dropout = nn.Dropout(config.dropout)
        self.value = nn.Linear(columns, hidden)
        if config.num_heads:
            self.state_norm = nn.LayerNorm(config.state_size) if config.state_size else None
            self.gate_in = nn.Linear(columns + config.state_size, hidden)
            self.gate_out = nn.Linear(hidden, config.num_heads)
            nn.init.zeros_(self.gate_out.weight)
            nn.init.zeros_(self.gate_out.bias)
        self.output = nn.Linear(max(1, config.num_heads) * (columns + hidden), 1)

    def standardise(self, values: Tensor) -> None:
        """Takes mean and standard deviation from the tokens of the training texts, ``(tokens, columns)``."""
        self.mean.copy_(values.double().mean(0))
        std = values.double().std(0, correction=0)
        self.std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))  # a constant column says nothing

    def forward(self, values: Tensor, mask: Tensor, states: Tensor | None = None) -> Tensor:
        """Logits ``(batch,)``.

        Args:
            values: ``(batch, seq, columns)``.
            mask: True at tokens, False at padding, ``(batch, seq)``; every text has a token.
            states: ``(batch, seq, state_size)``.
        """
        x = self._scaled(values)
        weights = self._weights(x, mask, states)  # (batch, heads, seq)
        v = torch.cat([x, self.dropout(F.gelu(self.value(x)))], -1)
        pooled = (weights @ v).flatten(1)
        return self.output(self.dropout(pooled)).squeeze(-1)

    def token_weights(self, values: Tensor, mask: Tensor, states: Tensor | None = None) -> Tensor:
        """What share of the decision each token has, mean over the attention heads, ``(batch, seq)``; 0 at padding."""
        return self._weights(self._scaled(values), mask, states).mean(1)

    def _scaled(self, values):
        return ((values - self.mean) / self.std).clamp(-LARGEST, LARGEST)

    def _weights(self, x, mask, states):
        if not self.config.num_heads:
            return (mask / mask.sum(-1, keepdim=True)).unsqueeze(1).to(x)
        inputs = x if self.state_norm is None else torch.cat([x, self.dropout(self.state_norm(states))], -1)
        scores = self.gate_out(self.dropout(F.gelu(self.gate_in(inputs))))  # (batch, seq, heads)
        return scores.masked_fill(~mask.unsqueeze(-1), -torch.inf).softmax(1).transpose(1, 2)

    def save(self, folder: str | Path) -> None:
        """Writes head.json and head.safetensors."""
        folder = Path(folder)
        (folder / CONFIG).write_text(json.dumps(asdict(self.config), indent=2) + "\n", encoding="utf-8")
        (folder / WEIGHTS).write_bytes(save({name: value.contiguous() for name, value in self.state_dict().items()}))

    @classmethod
    def load(cls, folder: str | Path) -> AttentionWeightedHead:
        """The head saved in ``folder``, in evaluation mode; nothing in it is executed.

        Raises:
            FileNotFoundError, ValueError: no head there, or a damaged one.
        """
        folder = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"detector={folder} has no {name}; train one with `hf-elm detect train`.")
        try:
            fields = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            head = cls(HeadConfig(**fields | {"columns": tuple(fields["columns"])}))
            head.load_state_dict(load_file(folder / WEIGHTS))
        except (ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"detector={folder} is damaged: {reason}; train it anew.") from error
        return head.eval()


@dataclass
class FeatureBatch:
    """Texts side by side, padded on the right: ``(batch, seq, ...)``."""

    values: Tensor
    mask: Tensor
    states: Tensor | None

    @classmethod
    def of(cls, texts: list[TextFeatures]) -> FeatureBatch:
        values = nn.utils.rnn.pad_sequence([text.values for text in texts], batch_first=True)
        lengths = torch.tensor([len(text.values) for text in texts])
        mask = torch.arange(values.shape[1]) < lengths.unsqueeze(1)
        if texts[0].states is None:
            return cls(values, mask, None)
        return cls(values, mask, nn.utils.rnn.pad_sequence([text.states.float() for text in texts], batch_first=True))
