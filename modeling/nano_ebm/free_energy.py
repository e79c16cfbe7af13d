"""The free energy of a prediction, its gradient in closed form, and why following it cannot climb.

With h the state of a position, p its prediction (a distribution over the vocabulary), W the readout and e = W' p the expected
embedding:

    F(p) = U(e) - lambda H(p)
    U(e) = -<h, e> - ( sum_i relu(a + s B e)_i^(q+1) / (q+1) + sum_heads log sum_j exp(<Q h, k_j> / sqrt(width) + s <e, V w_j>) ) / s

The units' drive a = A h + b + sum_i C_i n_{t-i} sees the state and, beside it, the last tokens themselves (n = readout rows w of
mean square 1); q is their power; s > 0 is how far both terms answer to the candidate. j runs over the tokens up to the position: slot j of
the associative memory has the key k_j = K h_{j-1} + X n_j, the state before token j and the token, and that token's readout row
w_j; slot 0 has zero key and value (a sink). All three terms of U are concave in e (each is minus a convex function), so that
e -> <dU, e>  bounds U from above and minimising that bound plus the entropy terms lowers F:

    r(e) = -dU/de = h + B' relu(a + s B e)^q + sum_heads sum_j softmax_j(...) V w_j
    z <- z + alpha (temperature / lambda  W r(e) - z),    p = softmax(z / temperature),    F falls for every alpha in (0, 1]

alpha = 1 is the convex-concave procedure. U = -<h, e> alone is the published, linear energy, whose minimiser is the start.

Signs: energies, lower is likelier; nats. Shapes: batch, query = positions refined, keys = memory slots, units, heads, width.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .recent_tokens import normed_rows, recent_rows
from .trunk import merge_heads, split_heads


SHARED_SCORES = 2**16  # queries * keys up to which scores are kept over the steps; beyond, a fused kernel keeps none


class FreeEnergyTerms(nn.Module):
    """Weights of the non-linear terms: units (A, b, B, C) and associative memory (Q, K, X, V).

    Args:
        context: last tokens that the units see beside the state; 0 = none, and keys without their token (no C, no X).
        power, feedback: q and s.
        start_at_zero: B and V start at zero, so that refinement begins as the identity; the gradient reaches both.
    """

    def __init__(
        self, hidden_size: int, units: int, heads: int, start_at_zero: bool = False, context: int = 0, power: int = 1,
        feedback: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        self.heads, self.context, self.power, self.feedback = heads, context, power, feedback
        self.unit_in = nn.Linear(hidden_size, units) if units else None
        self.unit_out = nn.Linear(hidden_size, units, bias=False) if units else None
        self.unit_context = nn.Linear(context * hidden_size, units, bias=False) if units and context else None
        self.memory_query = nn.Linear(hidden_size, hidden_size) if heads else None
        self.memory_key = nn.Linear(hidden_size, hidden_size, bias=False) if heads else None
        self.memory_token = nn.Linear(hidden_size, hidden_size, bias=False) if heads and context else None
        self.memory_value = nn.Linear(hidden_size, hidden_size, bias=False) if heads else None
        if units:
            self.unit_out._nano_ebm_init = "zeros" if start_at_zero else "units"
        if heads and start_at_zero:
            self.memory_value._nano_ebm_init = "zeros"

    def memories(self, hidden: Tensor, token_rows: Tensor) -> tuple[Tensor, Tensor]:
        """What each token leaves behind: K h ``(batch, heads, seq, width)`` and the values V w.

        With a context the values are three times as wide: V w, the token's part X n of its slot's key, and n.

        Args:
            hidden: states, ``(batch, seq, hidden)``.
            token_rows: the tokens' rows of the readout, ``(batch, seq, hidden)``.
        """
        keys = split_heads(self.memory_key(hidden), self.heads)
        return keys, torch.cat([split_heads(part, self.heads) for part in self.token_values(token_rows)], -1)

    def token_values(self, token_rows: Tensor) -> list[Tensor]:
        """The parts of `memories`' values, each ``(batch, seq, hidden)``."""
        if not self.context:
            return [self.memory_value(token_rows)]
        rows = normed_rows(token_rows)
        return [self.memory_value(token_rows), self.memory_token(rows), rows]

    def recent(self, memories, layout, kept: slice | Tensor) -> Tensor | None:
        """The last tokens as the units at the positions ``kept`` see them, see `recent_rows`; None without a context."""
        if self.unit_context is None:
            return None
        keys, values = memories
        return recent_rows(merge_heads(values[..., 2 * keys.shape[-1] :]), self.context, layout, kept)

    def field(
        self, hidden: Tensor, memories, mask: Tensor | None, is_causal: bool, readout: nn.Linear, recent: Tensor | None = None
    ):  # fmt: skip
        """The `FreeEnergyField` at the states ``hidden`` ``(batch, query, hidden)``.

        Args:
            memories: (keys, values) of all tokens so far; None without memory.
            mask, is_causal: which slots each query reads, see `AttentionLayout.memory_queries`.
            recent: of `recent`; needed with a context.
        """
        parts = {"power": self.power, "feedback": self.feedback}
        if self.unit_in is not None:
            parts.update(unit_drive=self.unit_in(hidden), unit_out=effective_weight(self.unit_out))
        if self.unit_context is not None:
            parts["unit_drive"] = parts["unit_drive"] + self.unit_context(recent)
        if self.memory_query is not None:
            keys, values = memories
            query = split_heads(self.memory_query(hidden), self.heads) / math.sqrt(keys.shape[-1])
            width, values = keys.shape[-1], values[:, :, 1:]
            keys = keys[:, :, :-1]  # slot j: the state before token j
            if self.memory_token is not None:
                keys = keys + values[..., width : 2 * width]
            slots = torch.cat([keys, values[..., :width]], -1).to(query.dtype)
            parts.update(query=query, slots=F.pad(slots, (0, 0, 1, 0)), mask=mask, is_causal=is_causal)
        return linear_field(hidden, readout, **parts)


@dataclass
class FreeEnergyField:
    """U and its derivatives at fixed states; fields that are None are terms left out.

    Attributes:
        hidden: h, ``(batch, query, hidden)``.
        readout, bias: W ``(vocab, hidden)`` and, for a language model that has one, its bias ``(vocab)``.
        unit_drive, unit_out: a ``(batch, query, units)`` and B ``(units, hidden)``.
        power, feedback: q and s.
        query: Q h / sqrt(width), ``(batch, heads, query, width)``.
        slots: keys and values of the memory side by side, ``(batch, heads, keys, 2 width)``.
        mask, is_causal: which slots a query reads.
        scores: <Q h, k_j> / sqrt(width), -inf where a slot is not read, ``(batch * heads, query, keys)``; with ``values`` in
            the place of ``query``, ``slots`` and masks, see `prepared`.
        values: V w_j of the slots, ``(batch * heads, keys, width)``.
    """

    hidden: Tensor
    readout: Tensor
    bias: Tensor | None = None
    unit_drive: Tensor | None = None
    unit_out: Tensor | None = None
    power: int = 1
    feedback: float = 1.0
    query: Tensor | None = None
    slots: Tensor | None = None
    mask: Tensor | None = None
    is_causal: bool = False
    scores: Tensor | None = None
    values: Tensor | None = None

    @property
    def has_memory(self) -> bool:
        return self.query is not None or self.scores is not None

    @property
    def is_linear(self) -> bool:
        return self.unit_drive is None and not self.has_memory

    def prepared(self) -> "FreeEnergyField":
        """The same field for many candidates: the scores that they share are computed once.

        Not for long rows, whose score matrices would fill the memory, nor below float32, where the fused kernel is more exact.
        """
        if self.query is None or self.query.dtype.itemsize < 4:
            return self
        if self.query.shape[2] * self.slots.shape[2] > SHARED_SCORES:
            return self
        keys, values = self.slots.chunk(2, -1)
        scores, values = self._masked(self.query @ keys.transpose(-1, -2)).flatten(0, 1), values.flatten(0, 1)
        return replace(self, query=None, slots=None, mask=None, is_causal=False, scores=scores, values=values)

    def start(self) -> Tensor:
        """System 1: W h + bias, ``(batch, query, vocab)``, at least float32."""
        return self.logits(self.hidden)

    def logits(self, direction: Tensor) -> Tensor:
        """W r + bias: the negative energy of every token at direction r, ``(batch, query, vocab)``, at least float32."""
        logits = F.linear(direction.to(self.readout.dtype), self.readout, self.bias)
        return logits if logits.dtype.itemsize >= 4 else logits.float()

    def embed(self, probs: Tensor) -> Tensor:
        """e = W' p, ``(batch, query, hidden)``."""
        return (probs if probs.dtype == self.readout.dtype else probs.to(self.readout.dtype)) @ self.readout

    def pull(self, embedding: Tensor) -> Tensor:
        """r(e) = -dU/de (without the bias, which acts on tokens), ``(batch, query, hidden)``."""
        pull = self.hidden
        if self.unit_drive is not None:
            rows, unit_drive = embedding.flatten(0, 1), self.unit_drive.flatten(0, 1)
            units = torch.addmm(
                unit_drive, rows, self.unit_out.t(), alpha=self.feedback
            ).relu_()  # sums inside products
            units = units * units if self.power == 2 else units
            pull = torch.addmm(pull.flatten(0, 1), units, self.unit_out).view(pull.shape)
        if (
            self.scores is not None and embedding.shape[1] == 1
        ):  # one query: a row of the pull is its heads side by side
            rows = pull.reshape(len(self.scores), 1, -1)
            return torch.baddbmm(rows, self._shared_scores(embedding).softmax(-1), self.values).view(pull.shape)
        if self.has_memory:
            pull = pull + self._read(embedding)
        return pull

    def potential(self, embedding: Tensor) -> Tensor:
        """U(e) without the bias, ``(batch, query)``, nats."""
        total = torch.promote_types(self.hidden.dtype, torch.float32)
        potential = -(self.hidden * embedding).sum(-1, dtype=total)
        if self.unit_drive is not None:
            units = F.relu(self.unit_drive + self.feedback * F.linear(embedding, self.unit_out)).to(total)
            power = self.power + 1
            potential = potential - (units**power).sum(-1) / (power * self.feedback)
        if self.has_memory:
            potential = potential - torch.logsumexp(self._scores(embedding).to(total), -1).sum(1) / self.feedback
        return potential

    def coupling(self, embedding: Tensor) -> Tensor:
        """(dr/de) e, ``(batch, query, hidden)``: how far the pull grows with the candidate; its Jacobian is symmetric."""
        coupling = torch.zeros_like(self.hidden)
        if self.unit_drive is not None:
            response = self.feedback * F.linear(embedding, self.unit_out)
            units = F.relu(self.unit_drive + response)
            slope = units > 0 if self.power == 1 else self.power * units ** (self.power - 1)
            coupling = coupling + (slope * response) @ self.unit_out
        if self.has_memory:
            weights = self._scores(embedding).softmax(-1)
            values = self._values()
            drift = self._heads_of(embedding) @ values.transpose(-1, -2)  # s <e, u_j>, (batch, heads, query, keys)
            centred = drift - (weights * drift).sum(-1, keepdim=True)
            coupling = coupling + merge_heads((weights * centred) @ values)
        return coupling

    def repeat(self, copies: int) -> "FreeEnergyField":
        """The field of ``copies`` consecutive rows for each row of the batch."""
        names = ("hidden", "unit_drive", "query", "slots")
        rows = {
            name: value.repeat_interleave(copies, 0) for name in names if (value := getattr(self, name)) is not None
        }
        if self.scores is not None:
            for name in ("scores", "values"):  # heads stay together
                value = getattr(self, name).unflatten(0, (len(self.hidden), -1))
                rows[name] = value.repeat_interleave(copies, 0).flatten(0, 1)
        if self.mask is not None and self.mask.shape[0] > 1:
            rows["mask"] = self.mask.repeat_interleave(copies, 0)
        return replace(self, **rows)

    def _read(self, embedding):
        """Attention over the slots with scores <q, k_j> + s <e, u_j>; in one call where the first are not at hand."""
        if self.scores is not None:
            read = torch.bmm(self._shared_scores(embedding).softmax(-1), self.values)
            return merge_heads(read.unflatten(0, (len(embedding), -1)))
        query = torch.cat([self.query, self._heads_of(embedding)], -1)
        values = F.pad(self._values(), (0, query.shape[-1] // 2))  # as wide as the keys, which fast kernels want
        read = F.scaled_dot_product_attention(
            query, self.slots, values, attn_mask=self.mask, is_causal=self.is_causal, scale=1.0
        )
        return merge_heads(read[..., : query.shape[-1] // 2])

    def _scores(self, embedding):
        """Scores of the slots, ``(batch, heads, query, keys)``; -inf where a slot is not read."""
        if self.scores is None:
            return self._masked(torch.cat([self.query, self._heads_of(embedding)], -1) @ self.slots.transpose(-1, -2))
        return self._shared_scores(embedding).unflatten(0, (len(embedding), -1))

    def _shared_scores(self, embedding):
        """``scores`` and the candidate's part, ``(batch * heads, query, keys)``."""
        if embedding.shape[1] == 1:
            heads = embedding.reshape(len(self.scores), 1, -1)
        else:
            heads = split_heads(embedding, len(self.scores) // len(embedding)).flatten(0, 1)
        return torch.baddbmm(self.scores, heads, self.values.transpose(1, 2), alpha=self.feedback)

    def _masked(self, scores):
        mask = self.mask
        if self.is_causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        return scores if mask is None else scores.masked_fill(~mask, -torch.inf)

    def _heads_of(self, embedding):
        """s e by heads, ``(batch, heads, query, width)``."""
        heads = len(self.scores) // len(self.hidden) if self.query is None else self.query.shape[1]
        like = self.scores if self.query is None else self.query
        embedding = embedding if self.feedback == 1 else embedding * self.feedback
        return split_heads(embedding.to(like.dtype), heads)

    def _values(self):
        if self.values is not None:
            return self.values.unflatten(0, (len(self.hidden), -1))
        return self.slots[..., self.slots.shape[-1] // 2 :]


def linear_field(hidden: Tensor, readout: nn.Linear, **parts) -> FreeEnergyField:
    """The published energy U(e) = -<h, e>, a frozen energy per token; ``parts``: the fields of further terms."""
    return FreeEnergyField(hidden, effective_weight(readout), readout.bias, **parts)


def effective_weight(linear: nn.Module) -> Tensor:
    """W ``(out, in)`` of the map x -> W x + bias that ``linear`` computes, differentiable in whatever it is made of.

    The energy uses its matrices in both directions. The ``weight`` of a layer that PEFT has wrapped is that of the layer before
    the adapter, so that of any other module than `nn.Linear` W is read off the unit vectors: as costly as ``in`` tokens.
    """
    if type(linear) is nn.Linear:
        return linear.weight
    weight = linear.weight
    dtype = weight.dtype if weight.dtype.is_floating_point else torch.get_default_dtype()
    rows = linear(torch.eye(linear.in_features, dtype=dtype, device=weight.device))
    return (rows if linear.bias is None else rows - linear.bias).t()


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
        return self._scaled(logits).log_softmax(-1)

    def probs(self, logits: Tensor) -> Tensor:
        """p, ``(batch, query, vocab)``; 0 outside the candidates."""
        return self._scaled(logits).softmax(-1)

    def _scaled(self, logits):
        scaled = logits if self.temperature == 1 else logits / self.temperature
        return scaled if self.candidates is None else scaled.masked_fill(~self.candidates, -torch.inf)

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

    def drive(self, field: FreeEnergyField, probs: Tensor) -> Tensor:
        """-d(objective without entropy)/dp = W r + bias, with the coupling unless ``own_field``, ``(batch, query, vocab)``."""
        embedding = field.embed(probs)
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
        slope = -self.drive(field, probs)
        if self.entropy_weight:
            slope = slope + self.entropy_weight * log_probs.masked_fill(probs == 0, 0.0)
        return probs * (slope - (probs * slope).sum(-1, keepdim=True)) / self.temperature

    def mirror_move(self, field: FreeEnergyField, logits: Tensor) -> Tensor:
        """The full step (alpha = 1) in the mirror geometry: `mirror_end` - z, ``(batch, query, vocab)``."""
        return self.mirror_end(field, logits) - logits

    def mirror_end(self, field: FreeEnergyField, logits: Tensor) -> Tensor:
        """Where the full step leads: temperature / lambda * drive, ``(batch, query, vocab)``."""
        drive, factor = self.drive(field, self.probs(logits)), self.temperature / self.entropy_weight
        return drive if factor == 1 else drive * factor


def _p_log_p(probs, log_probs):
    return probs * log_probs.masked_fill(probs == 0, 0.0)
