"""What a model says of each token of a text: the inputs of the machine-text detector.

Of every distribution over the next token (the LM's; nanoEBM: before and after thinking), with p its probabilities:

    log_prob       log p(x_t), nats
    log_rank       log(1 + number of tokens likelier than x_t)
    entropy        H = -sum_y p(y) log p(y), nats
    log_prob_std   standard deviation of log p(y) under p, nats: (log p(x_t) + H) / std is Fast-DetectGPT's curvature

MonArc adds ``energy`` E(x_t) and both ends of log Z, ``log_z_lower`` and ``log_z_upper`` (equal where Z is summed
whole), so that log p_ELM(x_t) - log p_LM(x_t) = -E(x_t) - log Z is among what a linear map of the features can form.
nanoEBM adds the free energy of the prediction before thinking and its fall. Each text is read by itself: its first
token has nothing before it and has no features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .continuation_batch import ContinuationBatch
from .continuation_scores import ContinuationScorer, EnergyScorer, ThinkingScorer, scorer_of


DISTRIBUTION_COLUMNS = ("log_prob", "log_rank", "entropy", "log_prob_std")
LOG_PROB_FLOOR = -60.0  # in the place of log 0, where a model leaves tokens without probability
CHUNK_ELEMENTS = 1 << 22  # float64 entries of (row, token, vocab) held at once: 32 MiB


@dataclass
class TextFeatures:
    """Features of one text of n tokens.

    Attributes:
        values: float32 ``(n - 1, columns)``, of the tokens from the second one on.
        states: last hidden states at the same tokens, float16 ``(n - 1, hidden)``; None where they were not asked for.
    """

    values: Tensor
    states: Tensor | None = None


class FeatureExtractor:
    """Features of texts given as token ids, in batches; a text gets the same ones whatever stands beside it.

    Args:
        model: MonArc, nanoEBM or any other causal LM.
        batch_size: texts per forward pass.
        hidden_states: read the last hidden states too.
        think_steps: nanoEBM: refinement steps; None = as configured.
        energy_options: MonArc: ``method``, ``num_samples``, ``exact_top``, ``max_rows``, ``seed`` of
            `hf_elm.evaluation.evaluate_elm`.

    Attributes:
        columns: names of the features.
        positions: longest text that the model takes; None = any.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        model,
        *,
        batch_size: int = 16,
        hidden_states: bool = False,
        think_steps: int | None = None,
        **energy_options,
    ):
        self.model, self.hidden_states = model, hidden_states
        options = energy_options if hasattr(model, "score_candidates") else {}
        self.scorer: ContinuationScorer = scorer_of(model, batch_size, think_steps, **options)
        self.batch_size, self.positions = batch_size, self.scorer.positions
        kind = type(self.scorer)
        self._read = {EnergyScorer: self._of_energy, ThinkingScorer: self._of_thinking}.get(kind, self._of_logits)
        own = {EnergyScorer: ("energy", "log_z_lower", "log_z_upper"), ThinkingScorer: ("energy_s1", "energy_fall")}
        names = [DISTRIBUTION_COLUMNS]
        if kind is ThinkingScorer:
            names = [tuple(f"{name}_{system}" for name in DISTRIBUTION_COLUMNS) for system in self.scorer.columns]
        self.columns: tuple[str, ...] = sum(names, ()) + own.get(kind, ())

    def describe(self) -> dict[str, Any]:
        """How the features were found, as JSON: equal descriptions of the same model give equal features."""
        how = self.scorer.describe() | {"columns": list(self.columns), "hidden_states": self.hidden_states}
        how.pop("interval")
        return how

    def extract(self, rows: list[list[int]]) -> list[TextFeatures]:
        """Features of texts of at least two tokens each, in order.

        Raises:
            ValueError: a text of fewer than two tokens or more than the model's positions; a model that has diverged.
        """
        for number, ids in enumerate(rows):
            if len(ids) < 2 or (self.positions is not None and len(ids) > self.positions):
                most = "" if self.positions is None else f" and at most {self.positions}"
                raise ValueError(f"text {number} has {len(ids)} tokens; features need at least 2{most}.")
        found: list[TextFeatures] = []
        for start in range(0, len(rows), self.batch_size):
            found += self._batch(rows[start : start + self.batch_size])
        return found

    @torch.no_grad()
    def _batch(self, rows: list[list[int]]) -> list[TextFeatures]:
        batch = ContinuationBatch.of([(ids[:1], ids[1:]) for ids in rows], self.scorer.device)
        training = self.model.training
        self.model.eval()
        try:
            values, states = self._read(batch)
        finally:
            self.model.train(training)
        values = batch.rows(values.float())
        if not all(bool(part.isfinite().all()) for part in values):
            raise ValueError("the features of a text are not finite; the model has diverged.")
        if states is None:
            return [TextFeatures(part) for part in values]
        kept = batch.rows(states[:, -batch.width :].half())
        return [TextFeatures(*pair) for pair in zip(values, kept, strict=True)]

    def _of_logits(self, batch):
        out = self.model(**batch.model_inputs(), use_cache=False, output_hidden_states=self.hidden_states)
        values = distribution_features(out.logits[:, -batch.width - 1 : -1], batch.targets())
        return values, self._last_state(out)

    def _of_energy(self, batch):
        out = self.model(
            **batch.model_inputs(), output_energies=False, use_cache=False, output_hidden_states=self.hidden_states
        )
        logits = out.logits[:, -batch.width - 1 :]
        (_, energy), lower, upper, _ = self.scorer.normalised(batch, logits)
        own = torch.stack([energy, lower, upper], -1)
        return torch.cat([distribution_features(logits[:, :-1], batch.targets()), own], -1), self._last_state(out)

    def _of_thinking(self, batch):
        out = self.model(
            **batch.model_inputs(),
            use_thinking=True,
            think_steps=self.scorer.think_steps,
            logits_to_keep=batch.width + 1,
            output_energies=True,
            output_hidden_states=self.hidden_states,
        )
        parts = [distribution_features(logits[:, :-1], batch.targets()) for logits in (out.s1_logits, out.logits)]
        first, last = (out.energies[step, :, :-1].cpu().double() for step in (0, -1))
        return torch.cat([*parts, torch.stack([first, first - last], -1)], -1), self._last_state(out)

    def _last_state(self, out):
        return out.hidden_states[-1] if self.hidden_states else None


def distribution_features(logits: Tensor, targets: Tensor) -> Tensor:
    """`DISTRIBUTION_COLUMNS` of each target under its distribution, float64 ``(batch, seq, 4)`` on the CPU.

    Args:
        logits: unnormalised log p of the targets' places, ``(batch, seq, vocab)``.
        targets: the tokens themselves, ``(batch, seq)``.
    """
    rows = max(1, CHUNK_ELEMENTS // (logits.shape[1] * logits.shape[2]))
    parts = zip(logits.split(rows), targets.split(rows), strict=True)
    return torch.cat([_distribution_features(*part) for part in parts])


def _distribution_features(logits, targets):
    log_probs = logits.cpu().double().log_softmax(-1).clamp(min=LOG_PROB_FLOOR)
    chosen = log_probs.gather(-1, targets.cpu().unsqueeze(-1))
    rank = 1.0 + (log_probs > chosen).sum(-1)
    probs = log_probs.exp()
    mean = (probs * log_probs).sum(-1)
    variance = (probs * (log_probs - mean.unsqueeze(-1)).square()).sum(-1)
    return torch.stack([chosen.squeeze(-1), rank.log(), -mean, variance.sqrt()], -1)
