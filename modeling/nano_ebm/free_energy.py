"""The free energy of a prediction, its gradient in closed form, and why following it cannot climb.

With h the state of a position, p its prediction (a distribution over the vocabulary), W the readout and e = W' p the expected
embedding:

    F(p) = U(e) - lambda H(p)
    U(e) = -<h, e>  -  sum_i relu(A h + b + B e)_i^2 / 2  -  sum_heads log sum_j exp(<Q h, K h_{j-1}> / sqrt(width) + <e, V w_j>)

j runs over the tokens up to the position: slot j of the associative memory pairs the state before token j with that token's
readout row w_j; slot 0 has zero key and value (a sink). All three terms of U are concave in e (each is minus a convex
function), so that  e -> <dU, e>  bounds U from above and minimising that bound plus the entropy terms lowers F:

    r(e) = -dU/de = h + B' relu(A h + b + B e) + sum_heads sum_j softmax_j(...) V w_j
    z <- z + alpha (temperature / lambda  W r(e) - z),    p = softmax(z / temperature),    F falls for every alpha in (0, 1]

alpha = 1 is the convex-concave procedure. U = -<h, e> alone is the published, linear energy, whose minimiser is the start.

Signs: energies, lower is likelier; nats. Shapes: batch, query = positions refined, keys = memory slots, units, heads, width.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .trunk import merge_heads, split_heads


class FreeEnergyTerms(nn.Module):
    """Weights of the non-linear terms: units (A, b, B) and associative memory (Q, K, V).

    ``start_at_zero``: B and V start at zero, so that refinement begins as the identity; the gradient reaches both.
    """

    def __init__(self, hidden_size: int, units: int, heads: int, start_at_zero: bool = False):
        super().__init__()
        self.heads = heads
        self.unit_in = nn.Linear(hidden_size, units) if units else None
        self.unit_out = nn.Linear(hidden_size, units, bias=False) if units else None
        self.memory_query = nn.Linear(hidden_size, hidden_size) if heads else None
        self.memory_key = nn.Linear(hidden_size, hidden_size, bias=False) if heads else None
        self.memory_value = nn.Linear(hidden_size, hidden_size, bias=False) if heads else None
        if units:
            self.unit_out._nano_ebm_init = "zeros" if start_at_zero else "units"
        if heads and start_at_zero:
            self.memory_value._nano_ebm_init = "zeros"

    def memories(self, hidden: Tensor, token_rows: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value that each token leaves behind, ``(batch, heads, seq, width)``.

        Args:
            hidden: states, ``(batch, seq, hidden)``.
            token_rows: the tokens' rows of the readout, ``(batch, seq, hidden)``.
        """
        keys = split_heads(self.memory_key(hidden), self.heads)
        return keys, split_heads(self.memory_value(token_rows), self.heads)

    def field(self, hidden: Tensor, memories, mask: Tensor | None, is_causal: bool, readout: nn.Linear):
        """The `FreeEnergyField` at the states ``hidden`` ``(batch, query, hidden)``.

        Args:
            memories: (keys, values) of all tokens so far; None without memory.
            mask, is_causal: which slots each query reads, see `AttentionLayout.memory_queries`.
        """
        field = linear_field(hidden, readout)
        if self.unit_in is not None:
            field = replace(field, unit_drive=self.unit_in(hidden), unit_out=self.unit_out.weight)
        if self.memory_query is None:
            return field
        keys, values = memories
        keys = F.pad(keys[:, :, :-1], (0, 0, 1, 0))  # slot j: the state before token j
        values = F.pad(values[:, :, 1:], (0, 0, 1, 0))
        query = split_heads(self.memory_query(hidden), self.heads) / math.sqrt(keys.shape[-1])
        keys = torch.cat([keys.to(query.dtype), values.to(query.dtype)], -1)
        return replace(field, query=query, slots=keys, mask=mask, is_causal=is_causal)


@dataclass
class FreeEnergyField:
    """U and its derivatives at fixed states; fields that are None are terms left out.

    Attributes:
        hidden: h, ``(batch, query, hidden)``.
        readout, bias: W ``(vocab, hidden)`` and, for a language model that has one, its bias ``(vocab)``.
        unit_drive, unit_out: A h + b ``(batch, query, units)`` and B ``(units, hidden)``.
        query: Q h / sqrt(width), ``(batch, heads, query, width)``.
        slots: keys and values of the memory side by side, ``(batch, heads, keys, 2 width)``.
        mask, is_causal: which slots a query reads.
    """

    hidden: Tensor
    readout: Tensor
    bias: Tensor | None = None
    unit_drive: Tensor | None = None
    unit_out: Tensor | None = None
    query: Tensor | None = None
    slots: Tensor | None = None
    mask: Tensor | None = None
    is_causal: bool = False

    @property
    def is_linear(self) -> bool:
        return self.unit_drive is None and self.query is None

    def start(self) -> Tensor:
        """System 1: W h + bias, ``(batch, query, vocab)``, at least float32."""
        return self.logits(self.hidden)

    def logits(self, direction: Tensor) -> Tensor:
        """W r + bias: the negative energy of every token at direction r, ``(batch, query, vocab)``, at least float32."""
        logits = F.linear(direction.to(self.readout.dtype), self.readout, self.bias)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def embed(self, probs: Tensor) -> Tensor:
        """e = W' p, ``(batch, query, hidden)``."""
        return probs.to(self.readout.dtype) @ self.readout

    def pull(self, embedding: Tensor) -> Tensor:
        """r(e) = -dU/de (without the bias, which acts on tokens), ``(batch, query, hidden)``."""
        pull = self.hidden
        if self.unit_drive is not None:
            pull = pull + F.relu(self.unit_drive + F.linear(embedding, self.unit_out)) @ self.unit_out
        if self.query is not None:
            pull = pull + self._read(embedding)
        return pull

    def potential(self, embedding: Tensor) -> Tensor:
        """U(e) without the bias, ``(batch, query)``, nats."""
        total = torch.promote_types(self.hidden.dtype, torch.float32)
        potential = -(self.hidden * embedding).sum(-1, dtype=total)
        if self.unit_drive is not None:
            units = F.relu(self.unit_drive + F.linear(embedding, self.unit_out))
            potential = potential - 0.5 * units.to(total).square().sum(-1)
        if self.query is not None:
            potential = potential - torch.logsumexp(self._scores(embedding).to(total), -1).sum(1)
        return potential

    def coupling(self, embedding: Tensor) -> Tensor:
        """(dr/de) e, ``(batch, query, hidden)``: how far the pull grows with the candidate; its Jacobian is symmetric."""
        coupling = torch.zeros_like(self.hidden)
        if self.unit_drive is not None:
            response = F.linear(embedding, self.unit_out)
            coupling = coupling + ((self.unit_drive + response > 0) * response) @ self.unit_out
        if self.query is not None:
            weights = self._scores(embedding).softmax(-1)
            values = self._values()
            drift = self._heads_of(embedding) @ values.transpose(-1, -2)  # <e, u_j>, (batch, heads, query, keys)
            centred = drift - (weights * drift).sum(-1, keepdim=True)
            coupling = coupling + merge_heads((weights * centred) @ values)
        return coupling

    def repeat(self, copies: int) -> "FreeEnergyField":
        """The field of ``copies`` consecutive rows for each row of the batch."""
        names = ("hidden", "unit_drive", "query", "slots")
        rows = {
            name: value.repeat_interleave(copies, 0) for name in names if (value := getattr(self, name)) is not None
        }
        if self.mask is not None and self.mask.shape[0] > 1:
            rows["mask"] = self.mask.repeat_interleave(copies, 0)
        return replace(self, **rows)

    def _read(self, embedding):
        """Attention over the slots with scores <q, k_j> + <e, u_j>: one call, query and candidate side by side."""
        query = torch.cat([self.query, self._heads_of(embedding)], -1)
        values = F.pad(self._values(), (0, query.shape[-1] // 2))  # as wide as the keys, which fast kernels want
        read = F.scaled_dot_product_attention(
            query, self.slots, values, attn_mask=self.mask, is_causal=self.is_causal, scale=1.0
        )
        return merge_heads(read[..., : query.shape[-1] // 2])

    def _scores(self, embedding):
        """Scores of the slots, ``(batch, heads, query, keys)``; -inf where a slot is not read."""
        scores = torch.cat([self.query, self._heads_of(embedding)], -1) @ self.slots.transpose(-1, -2)
        mask = self.mask
        if self.is_causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        return scores if mask is None else scores.masked_fill(~mask, -torch.inf)

    def _heads_of(self, embedding):
        return split_heads(embedding.to(self.query.dtype), self.query.shape[1])

    def _values(self):
        return self.slots[..., self.slots.shape[-1] // 2 :]


def linear_field(hidden: Tensor, readout: nn.Linear) -> FreeEnergyField:
    """The published energy U(e) = -<h, e>, a frozen energy per token."""
    return FreeEnergyField(hidden, readout.weight, readout.bias)


# ------------------------------------------------------------------------------------ energies of distributions


@dataclass
class Objective:
    """What refinement descends, as a function of logits z; p = softmax(z / temperature), over ``candidates`` only if given.

    Attributes:
        entropy_weight: lambda of -lambda H(p).
        own_field: the energy of p is F(p) above (the field of the mixture, held fixed while tokens are compared); False: the
            mean <p, E(p)> of the tokens' energies E_v = -<w_v, r(e)>, differentiated as a whole.
        candidates: True = may have probability, boolean ``(batch, query, vocab)``; None = every token.
    """

    temperature: float = 1.0
    entropy_weight: float = 1.0
    own_field: bool = True
    candidates: Tensor | None = None

    def log_probs(self, logits: Tensor) -> Tensor:
        """log p, ``(batch, query, vocab)``; -inf outside the candidates."""
        scaled = logits / self.temperature
        if self.candidates is not None:
            scaled = scaled.masked_fill(~self.candidates, -torch.inf)
        return scaled.log_softmax(-1)

    def energy(self, field: FreeEnergyField, logits: Tensor) -> Tensor:
        """The objective of each position, ``(batch, query)``, nats."""
        log_probs = self.log_probs(logits)
        probs = log_probs.exp()
        embedding = field.embed(probs)
        if self.own_field:
            energy = field.potential(embedding)
        else:
            energy = -(embedding * field.pull(embedding)).sum(-1)
        if field.bias is not None:
            energy = energy - (probs * field.bias).sum(-1)
        if self.entropy_weight:
            energy = energy + self.entropy_weight * _p_log_p(probs, log_probs).sum(-1)
        return energy

    def drive(self, field: FreeEnergyField, log_probs: Tensor) -> Tensor:
        """-d(objective without entropy)/dp = W r + bias, with the coupling unless ``own_field``, ``(batch, query, vocab)``."""
        embedding = field.embed(log_probs.exp())
        pull = field.pull(embedding)
        if not self.own_field and not field.is_linear:
            pull = pull + field.coupling(embedding)
        return field.logits(pull)

    def gradient(self, field: FreeEnergyField, logits: Tensor) -> Tensor:
        """d(objective)/dz in closed form, ``(batch, query, vocab)``.

        With D = -drive + lambda (log p + 1):  dF/dz = p (D - <p, D>) / temperature; 0 outside the candidates.
        """
        log_probs = self.log_probs(logits)
        probs = log_probs.exp()
        slope = -self.drive(field, log_probs)
        if self.entropy_weight:
            slope = slope + self.entropy_weight * log_probs.masked_fill(probs == 0, 0.0)
        return probs * (slope - (probs * slope).sum(-1, keepdim=True)) / self.temperature

    def mirror_move(self, field: FreeEnergyField, logits: Tensor) -> Tensor:
        """The full step (alpha = 1) in the mirror geometry: temperature / lambda * drive - z, ``(batch, query, vocab)``."""
        drive = self.drive(field, self.log_probs(logits))
        return drive * (self.temperature / self.entropy_weight) - logits


def _p_log_p(probs, log_probs):
    return probs * log_probs.masked_fill(probs == 0, 0.0)
