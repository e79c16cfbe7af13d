"""Log-likelihoods of continuations given contexts, under every distribution that a model holds.

MonArc: its LM and the energy-based model, p_ELM = p_LM exp(-E) / Z, with Z exact or bounded as in `hf_elm.evaluation`.
nanoEBM: before (system 1) and after thinking (system 2). Any other causal LM: itself. Units: nats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import log_z_bounds as bounds
from .candidate_strata import candidate_strata
from .continuation_batch import ContinuationBatch
from .evaluation import SCORES_HELD, _settings
from .token_log_probs import max_positions


Pair = tuple[list[int], list[int]]


@dataclass
class ContinuationScore:
    """What is known of one continuation.

    Attributes:
        log_probs: by column, log-probability of each of its tokens, float64 ``(tokens,)``, nats.
        greedy: by column, whether each of its tokens is the likeliest one.
        energies: of a MonArc model, E of each of its tokens, float64 ``(tokens,)``, nats; else None.
    """

    log_probs: dict[str, Tensor]
    greedy: dict[str, bool]
    energies: Tensor | None = None

    def total(self, column: str) -> float:
        """log p(continuation | context), nats."""
        return self.log_probs[column].sum().item()


class TargetValues(NamedTuple):
    """Of the targets of a batch, ``(batch, width)`` each: log p and whether it is the likeliest token, by column, and E."""

    log_probs: dict[str, Tensor]
    greedy: dict[str, Tensor]
    energies: Tensor | None = None


class ContinuationScorer:
    """Scores continuations in batches; the same pair gets the same score whatever stands beside it.

    Attributes:
        columns: names of the distributions, the plain language model's first.
        interval: columns (lower end, upper end) that enclose the last of ``columns``, or None where that one is exact.
        positions: longest row of the model; None = any.
    """

    columns: tuple[str, ...] = ("lm",)
    interval: tuple[str, str] | None = None

    def __init__(self, model, batch_size: int = 8):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.model = model
        self.batch_size = batch_size
        self.positions = model.max_positions() if hasattr(model, "max_positions") else max_positions(model)
        self.device = next(model.parameters()).device

    def describe(self) -> dict:
        """How the numbers were found, for records."""
        return {"columns": list(self.columns), "interval": self.interval and list(self.interval)}

    def scores(self, pairs: Iterable[Pair]) -> Iterator[ContinuationScore]:
        """Scores of (context, continuation) pairs of token ids, in order; batches are made of pairs that follow each other.

        Raises:
            ValueError: a pair longer than the positions, see `continuation_batch.continuation_pieces`.
        """
        batch: list[Pair] = []
        for context, continuation in pairs:
            if self.positions is not None and len(context) + len(continuation) > self.positions:
                raise ValueError(
                    f"{len(context) + len(continuation)} tokens do not fit into {self.positions} positions."
                )
            batch.append((context, continuation))
            if len(batch) == self.batch_size:
                yield from self._batch_scores(batch)
                batch = []
        if batch:
            yield from self._batch_scores(batch)

    @torch.no_grad()
    def _batch_scores(self, pairs) -> list[ContinuationScore]:
        training = self.model.training
        self.model.eval()
        try:
            batch = ContinuationBatch.of(pairs, self.device)
            log_probs, greedy, energies = TargetValues(*self._columns(batch))
        finally:
            self.model.train(training)
        for name, values in log_probs.items():
            if torch.isnan(values).any():
                raise ValueError(f"{name} log-probabilities are not a number; the model has diverged.")
        names = [*log_probs]
        parts = [batch.rows(log_probs[name]) for name in names]
        hits = [batch.rows(greedy[name]) for name in names]
        own = batch.rows(energies) if energies is not None else [None] * len(pairs)
        return [
            ContinuationScore(
                {name: part[i] for name, part in zip(names, parts, strict=True)},
                {name: bool(hit[i].all()) for name, hit in zip(names, hits, strict=True)},
                own[i],
            )
            for i in range(len(pairs))
        ]

    def _columns(self, batch: ContinuationBatch) -> tuple:
        """The fields of `TargetValues`, the energies only where there are any."""
        logits = self.model(**batch.model_inputs(), use_cache=False).logits[:, -batch.width - 1 : -1]
        log_probs, greedy = _of_logits(logits, batch.targets())
        return {"lm": log_probs}, {"lm": greedy}


class ThinkingScorer(ContinuationScorer):
    """nanoEBM: ``s1`` before and ``s2`` after ``think_steps`` refinement steps (None: as configured)."""

    columns = ("s1", "s2")

    def __init__(self, model, batch_size: int = 8, think_steps: int | None = None):
        super().__init__(model, batch_size)
        if think_steps is not None and think_steps < 1:
            raise ValueError(f"think_steps must be at least 1, got {think_steps}; half=lm is system 1.")
        self.think_steps = model.config.think_steps if think_steps is None else think_steps
        if not self.think_steps:
            raise ValueError("the model was saved with think_steps=0: pass think_steps for system 2.")

    def describe(self) -> dict:
        return super().describe() | {"think_steps": self.think_steps}

    def _columns(self, batch):
        out = self.model(
            **batch.model_inputs(),
            use_thinking=True,
            think_steps=self.think_steps,
            logits_to_keep=batch.width + 1,
            output_energies=False,
        )
        parts = {"s1": out.s1_logits, "s2": out.logits}
        found = {name: _of_logits(logits[:, :-1], batch.targets()) for name, logits in parts.items()}
        return {name: pair[0] for name, pair in found.items()}, {name: pair[1] for name, pair in found.items()}


class EnergyScorer(ContinuationScorer):
    """MonArc: ``lm`` and ``elm``; with Z not summed whole, ``elm_lower`` and ``elm_upper`` too.

    ``elm`` is then the middle of the interval: to first order in 1/K its two ends are off log p by equal amounts in opposite
    directions (see `log_z_bounds.fenchel_leave_one_out_upper`). Samples are seeded by the tokens of the row.

    Args:
        method, num_samples, exact_top, max_rows, seed: as of `hf_elm.evaluation.evaluate_elm`.
    """

    def __init__(self, model, batch_size=8, method="auto", num_samples=64, exact_top=None, max_rows=64, seed=0):
        super().__init__(model, batch_size)
        if exact_top is not None and exact_top < 1:
            raise ValueError(
                f"exact_top must be at least 1, got {exact_top}: the likeliest token is sought among them."
            )
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {max_rows}.")
        self.settings = _settings(model, method, num_samples, exact_top, max_rows, seed, None)
        self.columns = ("lm", "elm")
        self.interval = None if self.settings.method == "exact" else ("elm_lower", "elm_upper")

    def describe(self) -> dict:
        found = self.settings
        named = {name: getattr(found, name) for name in ("method", "num_samples", "exact_top", "seed", "vocab_size")}
        point = "exact" if self.interval is None else "middle of the interval"
        return super().describe() | {**named, "elm": point}

    def _columns(self, batch):
        logits = self.model(
            **batch.model_inputs(), output_energies=False, use_cache=False, logits_to_keep=batch.width + 1
        ).logits
        greedy_lm = logits[:, :-1].argmax(-1) == batch.targets()
        (lm, energy), lower, upper, best = self.normalised(batch, logits)
        ends = {"elm": (lower + upper) / 2}
        if self.interval is not None:
            ends |= {"elm_lower": upper, "elm_upper": lower}
        log_probs = {"lm": lm} | {name: lm - energy - log_z for name, log_z in ends.items()}
        likeliest = best == batch.targets().cpu()
        return log_probs, {"lm": greedy_lm.cpu()} | dict.fromkeys(ends, likeliest), energy

    def normalised(self, batch: ContinuationBatch, logits: Tensor):
        """(log p_LM, E) of the targets, both ends of log Z (equal where it is exact) and the likeliest token, ``(batch, width)``.

        Args:
            logits: of the LM at the last ``width + 1`` columns.
        """
        if self.settings.method == "exact":
            token, log_z, best = self._exact(batch)
            return token, log_z, log_z, best
        return self._bounded(batch, logits)

    def _exact(self, batch):
        """(log p_LM, E), log Z over the whole vocabulary, and the likeliest token, ``(batch, width)`` each."""
        rows, seq = batch.input_ids.shape
        vocabulary = torch.arange(self.settings.vocab_size, device=self.device).view(1, -1, 1).expand(rows, -1, seq)
        log_z = highest = torch.full((rows, batch.width), -torch.inf, dtype=torch.float64)
        best = torch.zeros(rows, batch.width, dtype=torch.long)
        first = 0
        token = None
        for found, log_probs, energies in self._candidates(batch, vocabulary):
            token = found  # the same in every chunk
            log_z = torch.logaddexp(log_z, bounds.exact_log_z(log_probs, energies))
            value, place = (log_probs - energies).max(-1)
            best = torch.where(value > highest, place + first, best)
            highest = torch.maximum(value, highest)
            first += log_probs.shape[-1]
        return token, log_z, best

    def _bounded(self, batch, logits):
        """(log p_LM, E), the ends of log Z's interval, and the likeliest of the head's tokens, ``(batch, width)`` each."""
        settings, width = self.settings, batch.width
        shape = (len(batch.lengths), settings.exact_top + settings.num_samples, batch.input_ids.shape[1])
        tokens = torch.zeros(shape, dtype=torch.long, device=self.device)
        head_log_probs = torch.zeros(len(batch.lengths), width, settings.exact_top, dtype=torch.float64)
        log_tail_mass = torch.zeros(len(batch.lengths), width, dtype=torch.float64)
        for i, length in enumerate(batch.lengths):
            strata = candidate_strata(
                logits[i, -length - 1 :], settings.exact_top, settings.num_samples, self._generator(batch, i)
            )
            tokens[i, :, -length:] = strata.token_ids[:, 1:]
            head_log_probs[i, -length:] = strata.head_log_probs[:, 1:].T.cpu()
            log_tail_mass[i, -length:] = strata.log_tail_mass[1:].cpu()
        parts = list(self._candidates(batch, tokens))
        energies = torch.cat([part[2] for part in parts], -1)
        head_energies, sampled = energies.split([settings.exact_top, settings.num_samples], -1)
        head = bounds.head_stratum(head_log_probs, head_energies, log_tail_mass)
        if settings.method == "certified":
            lower, upper = bounds.certified_interval(head, settings.energy_bound)
        else:
            lower, upper = bounds.jensen_lower(sampled, head), bounds.fenchel_leave_one_out_upper(sampled, head)
        place = (head_log_probs - head_energies).argmax(-1, keepdim=True)
        head_tokens = tokens[:, : settings.exact_top, -width:].cpu().transpose(1, 2)
        return parts[0][0], lower, upper, head_tokens.gather(-1, place).squeeze(-1)

    def _generator(self, batch: ContinuationBatch, row: int) -> torch.Generator:
        ids = batch.input_ids[row][batch.attention_mask[row] != 0].tolist()
        text = f"{self.settings.seed} {batch.lengths[row]} {ids}"
        number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
        return torch.Generator(self.device).manual_seed(number)

    def _candidates(self, batch: ContinuationBatch, candidates: Tensor):
        """Chunks of the candidate axis: ((log p_LM, E) of the targets, log p_LM, E of the candidates), the latter
        ``(batch, width, K)``, float64 on the CPU."""
        seq, width = batch.input_ids.shape[1], batch.width
        held = min(max(128, self.settings.max_rows), max(1, SCORES_HELD // batch.input_ids.numel()))
        positions = torch.arange(seq - width, seq, device=self.device)
        for chunk in candidates.split(held, 1):
            scores = self.model.score_candidates(
                candidates=chunk, max_rows=self.settings.max_rows, positions=positions, **batch.model_inputs()
            )
            token = tuple(_float64(each[:, -width:]) for each in (scores.token_log_probs, scores.token_energies))
            parts = (_float64(each[..., -width:]).transpose(1, 2) for each in (scores.log_probs, scores.energies))
            yield token, *parts


class TokenEnergyScorer(ContinuationScorer):
    """MonArc without Z: the column ``lm``, and energies, at the cost of two passes whatever the vocabulary."""

    def __init__(self, model, batch_size: int = 8):
        if not hasattr(model, "score_candidates"):
            raise ValueError(f"{type(model).__name__} has no energies of tokens; a MonArc model has.")
        super().__init__(model, batch_size)

    def _columns(self, batch):
        logits = self.model(
            **batch.model_inputs(), output_energies=False, use_cache=False, logits_to_keep=batch.width + 1
        ).logits
        log_probs, greedy = _of_logits(logits[:, :-1], batch.targets())
        last = torch.tensor(
            [batch.input_ids.shape[1] - 1], device=self.device
        )  # the candidates' own energies are not used
        scores = self.model.score_candidates(
            candidates=batch.input_ids.unsqueeze(1), positions=last, **batch.model_inputs()
        )
        return {"lm": log_probs}, {"lm": greedy}, _float64(scores.token_energies[:, -batch.width :])


def scorer_of(model, batch_size: int = 8, think_steps: int | None = None, **energy_options) -> ContinuationScorer:
    """The scorer of ``model``: `EnergyScorer`, `ThinkingScorer`, or for any other causal LM `ContinuationScorer`.

    Args:
        think_steps: for a nanoEBM.
        energy_options: for a MonArc model, arguments of `EnergyScorer`.
    """
    if hasattr(model, "score_candidates"):
        return EnergyScorer(model, batch_size, **energy_options)
    if getattr(model.config, "model_type", None) == "nano_ebm":
        return ThinkingScorer(model, batch_size, think_steps)
    return ContinuationScorer(model, batch_size)


def _of_logits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    log_probs = _float64(logits).log_softmax(-1)
    chosen = log_probs.gather(-1, targets.cpu().unsqueeze(-1)).squeeze(-1)
    return chosen, (logits.argmax(-1) == targets).cpu()


def _float64(values: Tensor) -> Tensor:
    return values.cpu().double()  # in this order: not every accelerator has float64
