"""Energies of what could have stood at each token's place, with log Z there: what the pictures of a MonArc model are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import log_z_bounds as bounds
from ..candidate_strata import candidate_strata
from ..evaluation import (
    _on_cpu,
    _progress_bar,
    _row_generator,
    _scores,
    _settings,
)
from ..evaluation_rows import RowBatch, in_random_order, leave_out_unknown, row_batches, unknown_token_id
from ..token_log_probs import evaluation_mode, max_positions


_ENTRIES_PER_BATCH = 2**24  # rows * seq * candidates whose scores are held, float64


@dataclass
class CandidateEnergies:
    """Counted tokens and the candidates at their places; float64 on the CPU, nats.

    Attributes:
        documents: key of each token's document, int64 ``(tokens, 2)``.
        targets: the tokens themselves, int64 ``(tokens)``.
        log_probs, energies: log p_LM and E of them, ``(tokens)``.
        candidates: other tokens, int64 ``(tokens, K)``: the whole vocabulary, or ``exact_top`` tokens, the LM's likeliest first,
            and then samples of the LM from the others.
        candidate_log_probs, candidate_energies: log p_LM and E of them, ``(tokens, K)``.
        log_weights: log of the share of the LM that each candidate stands for: log p_LM, of a sample log P_tail - log
            num_samples, so that sums over candidates estimate expectations under the LM without bias, ``(tokens, K)``.
        log_z_lower, log_z_upper: log Z, both ends the same where it is exact; else ends that hold in expectation, ``(tokens)``.
        exact_top: how many of the candidates are the likeliest tokens.
        is_exact: the candidates are the vocabulary.
    """

    documents: Tensor
    targets: Tensor
    log_probs: Tensor
    energies: Tensor
    candidates: Tensor
    candidate_log_probs: Tensor
    candidate_energies: Tensor
    log_weights: Tensor
    log_z_lower: Tensor
    log_z_upper: Tensor
    exact_top: int
    is_exact: bool

    @property
    def log_z(self) -> Tensor:
        """log Z, or the middle of its interval, ``(tokens)``."""
        return (self.log_z_lower + self.log_z_upper) / 2

    def describe(self) -> str:
        """How log Z was found, in words."""
        if self.is_exact:
            return f"log Z exact over {self.exact_top:,} tokens"
        samples = self.candidates.shape[1] - self.exact_top
        return f"log Z between bounds: {self.exact_top} likeliest tokens exact, {samples} samples"


@torch.no_grad()
def candidate_energies(
    model,
    rows: Iterable[Mapping],
    *,
    method: str = "auto",
    num_samples: int = 64,
    exact_top: int | None = None,
    max_tokens: int | None = 5000,
    max_rows: int = 64,
    seed: int = 0,
    tokenizer=None,
    progress: bool = True,
) -> Iterator[CandidateEnergies]:
    """Batch by batch the counted tokens of ``rows`` with their candidates, until ``max_tokens`` are reached.

    Args:
        model: a `MonArcForCausalLM`.
        rows: packed rows; those that can be indexed are taken in a random order of ``seed``.
        method: "exact", "sampled", or "auto": exact up to 512 tokens, see `hf_elm.evaluation.evaluate_elm`.
        num_samples, exact_top, max_rows: as there.
        max_tokens: None = all.
        tokenizer: its token for unknown text is not counted.

    Raises:
        TypeError: a model without energies.
        ValueError: an argument out of range, rows that the model cannot take, or none that counts.
    """
    if not hasattr(model, "score_candidates"):
        raise TypeError(
            f"model must be a MonArcForCausalLM, which has energies of tokens; got {type(model).__name__}."
        )
    at_least_one = {"max_tokens": max_tokens, "max_rows": max_rows, "exact_top": exact_top}
    for name, value in at_least_one.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if method == "certified":
        raise ValueError('method must be "auto", "exact" or "sampled": certified bounds come without samples to draw.')
    settings = _settings(model, method, num_samples, exact_top, max_rows, seed, None)
    unknown, room = unknown_token_id(tokenizer), max_tokens
    rows = rows if max_tokens is None else in_random_order(rows, seed)
    columns = (settings.exact_top + settings.num_samples) * (max_positions(model) or 1024)
    batches = row_batches(
        rows, max(1, min(8, _ENTRIES_PER_BATCH // columns)), max_positions(model), settings.vocab_size
    )
    found_any = False
    with evaluation_mode(model), _progress_bar(rows, settings, max_tokens, progress) as bar:
        for batch in batches:
            leave_out_unknown(batch, unknown)
            if batch.input_ids.shape[1] < 2 or not batch.counted.any():
                continue
            found = _of_batch(model, batch, settings, bar, room)
            if len(found.targets):
                found_any = True
                yield found
            if room is not None and (room := room - len(found.targets)) <= 0:
                return
    if not found_any:
        raise ValueError("rows hold no token that counts: every document has one token; give longer text.")


def _of_batch(model, batch: RowBatch, settings, bar, room) -> CandidateEnergies:
    draw = _vocabulary if settings.method == "exact" else _strata
    candidates, log_tail_mass = draw(model, batch, settings)
    parts = list(_scores(model, batch, candidates, settings, bar))
    batch.counted &= parts[0].target_mask.cpu()
    if room is not None:
        batch.counted &= (batch.counted.flatten().cumsum(0) <= room).view_as(batch.counted)
    counted = batch.counted
    log_probs, energies = (
        torch.cat([_on_cpu(getattr(part, name)).transpose(1, 2)[counted] for part in parts], 1)
        for name in ("log_probs", "energies")
    )
    if not torch.isfinite(energies).all():
        raise ValueError(
            f"an energy is not finite in row {batch.first_row} or one of the next; the model has diverged."
        )
    weights, lower, upper = _normalisers(log_probs, energies, log_tail_mass[counted], settings)
    return CandidateEnergies(
        documents=batch.documents[counted],
        targets=batch.input_ids[counted],
        log_probs=_on_cpu(parts[0].token_log_probs)[counted],
        energies=_on_cpu(parts[0].token_energies)[counted],
        candidates=candidates.cpu().transpose(1, 2)[counted],
        candidate_log_probs=log_probs,
        candidate_energies=energies,
        log_weights=weights,
        log_z_lower=lower,
        log_z_upper=upper,
        exact_top=settings.exact_top,
        is_exact=settings.method == "exact",
    )


def _vocabulary(model, batch, settings):
    rows, seq = batch.input_ids.shape
    everything = torch.arange(settings.vocab_size, device=settings.device).view(1, -1, 1).expand(rows, -1, seq)
    return everything, torch.full((rows, seq), -torch.inf, dtype=torch.float64)


def _strata(model, batch, settings):
    logits = model(**batch.model_inputs(settings.device)).logits
    strata = [
        candidate_strata(row, settings.exact_top, settings.num_samples, _row_generator(settings, batch.first_row + i))
        for i, row in enumerate(logits)
    ]
    return torch.stack([each.token_ids for each in strata]), torch.stack([each.log_tail_mass for each in strata]).cpu()


def _normalisers(log_probs, energies, log_tail_mass, settings):
    """log weights ``(tokens, K)`` and the two ends of log Z ``(tokens)``."""
    if settings.method == "exact":
        log_z = bounds.exact_log_z(log_probs, energies)
        return log_probs, log_z, log_z
    head_log_probs, _ = log_probs.split([settings.exact_top, settings.num_samples], 1)
    head_energies, sampled = energies.split([settings.exact_top, settings.num_samples], 1)
    head = bounds.head_stratum(head_log_probs, head_energies, log_tail_mass)
    share = (log_tail_mass - math.log(settings.num_samples)).unsqueeze(1).expand_as(sampled)
    lower, upper = bounds.jensen_lower(sampled, head), bounds.fenchel_leave_one_out_upper(sampled, head)
    return torch.cat([head_log_probs, share], 1), lower, upper
