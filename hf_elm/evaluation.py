"""Honest likelihoods of energy-based language models.

    p_ELM(x_t | x_<t) = p_LM(x_t | x_<t) exp(-E(x_t)) / Z(x_<t),    NLL_ELM = NLL_LM + E(x_t) + log Z(x_<t)

log Z is summed over the whole vocabulary where that is affordable and otherwise bounded from both sides (see
`hf_elm.log_z_bounds`): the likeliest tokens exactly, the rest by samples or by the bound on the energies. The LM's own
NLL stands beside it on the same tokens. A number that assumes Z = 1 is reported under ``diagnostics`` only.

Units: nats per token. Standard errors: by document.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import log_z_bounds as bounds
from .candidate_strata import candidate_strata
from .counted_bytes import TokenBytes
from .document_totals import DocumentTotals, ratio_estimate
from .elm_likelihood import ElmLikelihood
from .evaluation_rows import RowBatch, in_random_order, leave_out_unknown, row_batches, unknown_token_id
from .token_log_probs import evaluation_mode, max_positions, token_log_probs, vocabulary_size


__all__ = ["ElmLikelihood", "evaluate_elm"]

METHODS = ("auto", "exact", "sampled", "certified")
AUTO_EXACT_VOCAB = 512  # "auto" is exact up to here
EXACT_VOCAB = 8192  # "exact" is refused above unless asked again
SCORES_HELD = 1 << 23  # candidate scores (batch, K, seq) held at once
LONGEST_ROW = 1 << 20
BITS_PER_BYTE = {"lm_nll": "lm_bits_per_byte"} | {
    f"elm_nll{end}": f"elm_bits_per_byte{end}" for end in ("", "_lower", "_upper")
}


@dataclass
class _Settings:
    method: str
    num_samples: int
    exact_top: int
    vocab_size: int
    energy_bound: float | None
    max_rows: int
    seed: int
    device: torch.device
    unknown_id: int | None = None  # token that stands for text the tokenizer does not know: never counted
    columns: Tensor | None = None  # which columns of a row are counted, bool (LONGEST_ROW,); None = all


@torch.no_grad()
def evaluate_elm(
    model,
    data: Iterable[Mapping],
    *,
    method: str = "auto",
    num_samples: int = 64,
    exact_top: int | None = None,
    max_tokens: int | None = None,
    max_rows: int = 64,
    batch_size: int = 8,
    seed: int = 0,
    tokenizer=None,
    bytes_per_token: Sequence[int] | Tensor | None = None,
    equal_compute_lm=None,
    exact_vocab_limit: int | None = None,
    position_fraction: float = 1.0,
    progress: bool = True,
) -> ElmLikelihood:
    """NLL of a MonArc model and of the LM inside it on ``data``, nats/token, exact or as an interval.

    The same seed gives the same samples whatever ``batch_size`` is. The model is put in evaluation mode meanwhile.

    Args:
        model: a `MonArcForCausalLM`, or anything with its ``score_candidates`` and ``forward(...).logits``.
        data: rows as made by `hf_elm.trainers.packing`: dicts with ``input_ids`` and, where there are any, ``segment_ids``,
            ``labels`` (-100 is not counted), ``attention_mask``, ``position_ids``. A document is one (row, segment), or one
            value of the column ``document_ids`` if there is one.
        method: ``"exact"``: every token of the vocabulary is scored at every position. ``"sampled"``: ``exact_top`` tokens
            exactly, ``num_samples`` from the rest; an interval whose ends hold in expectation at every number of samples.
            ``"certified"``: ``exact_top`` tokens and ``config.energy_bound``; an interval that holds without sampling.
            ``"auto"``: exact up to 512 tokens, else sampled.
        num_samples: per position, at least 2.
        exact_top: likeliest tokens summed exactly; None = 64.
        max_tokens: stop after so many counted tokens, None = all. Rows that can be indexed are then taken in a random order
            of this ``seed``, so that the tokens come from many documents; a stream is read from its start.
        max_rows: candidate streams that run at once; memory against speed.
        batch_size: rows per forward pass; the logits of one batch are held at a time.
        tokenizer: for bits/byte, over the UTF-8 bytes that the counted tokens decode to. Its unknown token stands for text of
            which the model says nothing: it is not counted, and ``num_unknown_tokens`` says how often it occurred.
        bytes_per_token: instead of a tokenizer, the bytes that each token id stands for, ``(vocab,)``.
        equal_compute_lm: another causal LM over the same vocabulary, or a MonArc model whose LM is meant, scored on the
            very same tokens with the same document boundaries.
        exact_vocab_limit: largest vocabulary that is scored whole; None = 512 for ``"auto"``, 8192 for ``"exact"``.
        position_fraction: count this share of the positions only, the same random columns in every row, in (0, 1].
        progress: show a progress bar.

    Raises:
        TypeError: a model without energies, rows that are no dicts of integer sequences.
        ValueError: an argument out of range, empty data, rows longer than the model's positions, nothing counted,
            ``"exact"`` on a vocabulary above the limit, ``"certified"`` without ``config.energy_bound``.
    """
    _check_arguments(model, num_samples, exact_top, max_tokens, max_rows, batch_size, position_fraction)
    settings = _settings(model, method, num_samples, exact_top, max_rows, seed, exact_vocab_limit)
    settings.columns = _kept_columns(position_fraction, seed)
    settings.unknown_id = unknown_token_id(tokenizer)
    token_bytes = TokenBytes.of(tokenizer, bytes_per_token, settings.vocab_size)
    totals, num_rows, num_unknown = DocumentTotals(), 0, 0
    if max_tokens is not None:
        data = in_random_order(data, seed)
    batches = row_batches(data, batch_size, max_positions(model), settings.vocab_size)
    with contextlib.ExitStack() as stack:
        for each in (model, equal_compute_lm):
            stack.enter_context(evaluation_mode(each))
        bar = stack.enter_context(_progress_bar(data, settings, max_tokens, progress))
        for batch in batches:
            num_rows += len(batch.input_ids)
            num_unknown += leave_out_unknown(batch, settings.unknown_id)
            room = None if max_tokens is None else max_tokens - totals.num_tokens
            columns = _counted_columns(model, batch, settings, bar, room, equal_compute_lm, token_bytes)
            if columns is not None:
                totals.add(batch.documents[batch.counted], columns)
            if max_tokens is not None and totals.num_tokens >= max_tokens:
                break
    return _result(totals, settings, num_rows, num_unknown)


def _check_arguments(model, num_samples, exact_top, max_tokens, max_rows, batch_size, position_fraction):
    if not hasattr(model, "score_candidates"):
        raise TypeError(
            f"evaluate_elm needs a model with energies, got {type(model).__name__}; wrap a causal LM with "
            "MonArcForCausalLM.from_causal_lm and train its energy."
        )
    at_least_one = {"max_rows": max_rows, "batch_size": batch_size, "max_tokens": max_tokens}
    for name, value in at_least_one.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    for name, value in {"num_samples": num_samples, "exact_top": exact_top}.items():
        if value is not None and value < 0:
            raise ValueError(f"{name} must not be negative, got {value}.")
    if not 0 < position_fraction <= 1:
        raise ValueError(f"position_fraction must be in (0, 1], got {position_fraction}.")


def _settings(model, method, num_samples, exact_top, max_rows, seed, exact_vocab_limit) -> _Settings:
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}.")
    vocab_size = vocabulary_size(model)
    energy_bound = getattr(model.config, "energy_bound", None)
    if method == "auto":
        method = "exact" if vocab_size <= (exact_vocab_limit or AUTO_EXACT_VOCAB) else "sampled"
    elif method == "exact" and vocab_size > (limit := exact_vocab_limit or EXACT_VOCAB):
        raise ValueError(
            f'method="exact" scores all {vocab_size:,} tokens of the vocabulary at every position, {vocab_size:,} passes '
            f'through the model per row; refused above {limit:,}. Use method="sampled" for an interval, or pass '
            f"exact_vocab_limit={vocab_size} (and a small max_tokens)."
        )
    exact_top = min(64 if exact_top is None else exact_top, vocab_size)
    if method != "exact" and exact_top == vocab_size:
        method = "exact"  # nothing is left to sample or to bound
    if method == "sampled" and num_samples < 2:
        raise ValueError(
            f"num_samples must be at least 2 for bounds on both sides, got {num_samples}; without samples use "
            'method="certified" (needs config.energy_bound).'
        )
    if method == "certified" and energy_bound is None:
        raise ValueError(
            'method="certified" needs energies bounded by config.energy_bound, which is None: train with energy_bound set, '
            'or use method="sampled".'
        )
    if method == "exact":
        num_samples, exact_top = 0, vocab_size
    elif method == "certified":
        num_samples = 0
    device = next(model.parameters()).device
    return _Settings(method, num_samples, exact_top, vocab_size, energy_bound, max_rows, seed, device)


def _progress_bar(data, settings: _Settings, max_tokens: int | None, progress: bool):
    """A bar over candidate streams; with ``max_tokens`` its length supposes rows as long as the first one."""
    total = None
    if hasattr(data, "__len__"):
        rows = len(data)
        if max_tokens is not None and rows and isinstance(data[0], Mapping) and "input_ids" in data[0]:
            rows = min(rows, math.ceil(max_tokens / max(1, len(data[0]["input_ids"]) - 1)))
        total = rows * (settings.exact_top + settings.num_samples)
    return tqdm(total=total, desc=f"log Z, {settings.method}", unit="stream", disable=not progress, delay=1.0)


def _kept_columns(fraction: float, seed: int) -> Tensor | None:
    """Which columns of a row are counted: a random share, the same for every row and however rows are padded."""
    if fraction == 1.0:
        return None
    return torch.rand(LONGEST_ROW, generator=torch.Generator().manual_seed(seed)) < fraction


def _counted_columns(model, batch, settings, bar, room, equal_compute_lm, token_bytes) -> dict[str, Tensor] | None:
    """Everything known per counted token, at most ``room`` of them, or None; narrows ``batch.counted`` to those."""
    seq = batch.input_ids.shape[1]
    if settings.columns is not None:
        batch.counted &= settings.columns[:seq]
    if seq < 2 or not batch.counted.any():
        return None
    columns = _score_batch(model, batch, settings, bar)
    if room is not None:
        columns = {name: values[:room] for name, values in columns.items()}
        batch.counted &= (batch.counted.flatten().cumsum(0) <= room).view_as(batch.counted)
    if equal_compute_lm is not None:
        log_probs = token_log_probs(equal_compute_lm, batch, settings.max_rows)
        columns["equal_compute_lm_nll"] = -_on_cpu(log_probs)[batch.counted]
    if token_bytes is not None:
        columns["bytes"] = token_bytes(batch)
    return columns


def _score_batch(model, batch: RowBatch, settings: _Settings, bar) -> dict[str, Tensor]:
    """Per counted token, float64 ``(counted,)``: LM NLL, E, and log Z or its bounds. Narrows ``batch.counted``."""
    columns = (_exact_columns if settings.method == "exact" else _stratified_columns)(model, batch, settings, bar)
    for name in ("lm_nll", "mean_energy", "mean_log_z_lower"):
        if not torch.isfinite(columns[name]).all():
            last = batch.first_row + len(batch.input_ids) - 1
            raise ValueError(
                f"{name} is not finite somewhere in rows {batch.first_row} to {last}; the model has diverged."
            )
    return columns


def _exact_columns(model, batch, settings, bar):
    """log Z by summing over the vocabulary in chunks; only running sums ``(batch, seq)`` are kept."""
    rows, seq = batch.input_ids.shape
    vocabulary = torch.arange(settings.vocab_size, device=settings.device).view(1, -1, 1).expand(rows, -1, seq)
    log_z = log_square = torch.full((rows, seq), -torch.inf, dtype=torch.float64)
    for scores in _scores(model, batch, vocabulary, settings, bar):
        log_probs, energies = (_on_cpu(part).transpose(1, 2) for part in (scores.log_probs, scores.energies))
        log_z = torch.logaddexp(log_z, bounds.exact_log_z(log_probs, energies))
        log_square = torch.logaddexp(log_square, bounds.exact_log_z(log_probs, 2 * energies))
    columns = _token_columns(batch, scores)
    log_z, log_square = log_z[batch.counted], log_square[batch.counted]
    columns |= {"mean_log_z_lower": log_z, "mean_log_z_upper": log_z, "mean_z": log_z.exp()}
    return columns | {"ess_fraction": bounds.effective_sample_fraction(log_z, log_square)}


def _stratified_columns(model, batch, settings, bar):
    """Bounds on log Z from the likeliest tokens, and from samples or the bound on the energies for the rest."""
    logits = model(**batch.model_inputs(settings.device)).logits
    strata = [
        candidate_strata(row, settings.exact_top, settings.num_samples, _row_generator(settings, batch.first_row + i))
        for i, row in enumerate(logits)
    ]
    del logits
    parts = list(_scores(model, batch, torch.stack([each.token_ids for each in strata]), settings, bar))
    columns = _token_columns(batch, parts[0])
    energies = torch.cat([_on_cpu(part.energies) for part in parts], 1).transpose(1, 2)[batch.counted]
    head_energies, sampled = energies.split([settings.exact_top, settings.num_samples], -1)
    head_log_probs = torch.stack([each.head_log_probs for each in strata]).cpu().transpose(1, 2)[batch.counted]
    log_tail_mass = torch.stack([each.log_tail_mass for each in strata]).cpu()[batch.counted]
    head = bounds.head_stratum(head_log_probs, head_energies, log_tail_mass)
    if settings.energy_bound is not None:
        ends = dict(
            zip(
                ("certified_lower", "certified_upper"),
                bounds.certified_interval(head, settings.energy_bound),
                strict=True,
            )
        )
        columns |= ends
    if settings.method == "certified":
        return columns | {"mean_log_z_lower": ends["certified_lower"], "mean_log_z_upper": ends["certified_upper"]}
    lower = bounds.jensen_lower(sampled, head)
    log_square = bounds.log_second_moment(sampled, head_log_probs, head_energies, log_tail_mass)
    return columns | {
        "mean_log_z_lower": lower,
        "mean_log_z_upper": bounds.fenchel_leave_one_out_upper(sampled, head),
        "mean_z": lower.exp(),
        "ess_fraction": bounds.effective_sample_fraction(lower, log_square),
        "jackknife": bounds.jackknife_log_z(sampled, head),
    }


def _scores(model, batch, candidates: Tensor, settings: _Settings, bar):
    """`score_candidates` over chunks of the candidate axis, so that scores of bounded size are held."""
    inputs = batch.model_inputs(settings.device)
    if settings.columns is not None and "positions" in inspect.signature(model.score_candidates).parameters:
        inputs["positions"] = settings.columns[: batch.input_ids.shape[1]].nonzero().flatten().to(settings.device)
    held = min(max(128, settings.max_rows), max(1, SCORES_HELD // batch.input_ids.numel()))
    for chunk in candidates.split(held, 1):
        yield model.score_candidates(candidates=chunk, max_rows=settings.max_rows, **inputs)
        bar.update(chunk.shape[0] * chunk.shape[1])


def _token_columns(batch, scores) -> dict[str, Tensor]:
    batch.counted &= scores.target_mask.cpu()
    return {
        "lm_nll": -_on_cpu(scores.token_log_probs)[batch.counted],
        "mean_energy": _on_cpu(scores.token_energies)[batch.counted],
    }


def _on_cpu(values: Tensor) -> Tensor:
    return values.cpu().double()  # in this order: not every accelerator has float64


def _row_generator(settings: _Settings, row: int) -> torch.Generator:
    mixed = (settings.seed * 0x9E3779B97F4A7C15 + row * 0xBF58476D1CE4E5B9 + 1) % (1 << 63)
    return torch.Generator(settings.device).manual_seed(mixed)


def _result(totals: DocumentTotals, settings: _Settings, num_rows: int, num_unknown: int) -> ElmLikelihood:
    if not totals.num_tokens:
        raise ValueError(
            "data has no counted tokens: every row is shorter than 2 tokens, is padding, has labels of -100 throughout, or "
            "holds nothing that the tokenizer knows."
        )
    counts, sums = totals.totals()
    quantities, diagnostics = _quantities(sums, counts, exact=settings.method == "exact")
    fields = _fields(quantities, counts)
    if "bytes" in sums:
        bits = {name: quantities[name] / math.log(2) for name in quantities if name in BITS_PER_BYTE}
        fields |= _fields({BITS_PER_BYTE[name]: value for name, value in bits.items()}, sums["bytes"])
        fields["num_bytes"] = round(sums["bytes"].sum().item())
    return ElmLikelihood(
        method=settings.method,
        num_tokens=totals.num_tokens,
        num_documents=len(counts),
        num_rows=num_rows,
        num_unknown_tokens=num_unknown,
        vocab_size=settings.vocab_size,
        num_samples=settings.num_samples,
        exact_top=settings.exact_top,
        seed=settings.seed,
        ess_fraction=ratio_estimate(sums["ess_fraction"], counts).value if "ess_fraction" in sums else None,
        diagnostics={name: ratio_estimate(value, counts).value for name, value in diagnostics.items()},
        **fields,
    )


def _quantities(sums: dict[str, Tensor], counts: Tensor, exact: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Totals by document of every reported quantity, and of the diagnostics; all are sums over tokens."""
    lm, energy = sums["lm_nll"], sums["mean_energy"]
    claimed = lm + energy
    out = {name: sums[name] for name in ("lm_nll", "mean_energy", "mean_z", "equal_compute_lm_nll") if name in sums}
    for end, other in (("_lower", "_upper"), ("_upper", "_lower")):
        out[f"mean_log_z{end}"] = sums[f"mean_log_z{end}"]
        out[f"elm_nll{end}"] = claimed + sums[f"mean_log_z{end}"]
        out[f"gain{end}"] = -energy - sums[f"mean_log_z{other}"]
        if f"certified{end}" in sums:
            out[f"certified_elm_nll{end}"] = claimed + sums[f"certified{end}"]
        if "equal_compute_lm_nll" in sums:
            out[f"gain_over_equal_compute{end}"] = sums["equal_compute_lm_nll"] - claimed - sums[f"mean_log_z{other}"]
    if exact:
        out |= {name.removesuffix("_lower"): value for name, value in out.items() if name.endswith("_lower")}
    diagnostics = {"claimed_nll": claimed}
    if "mean_z" in sums:
        diagnostics["elm_nll_bound"] = claimed + sums["mean_z"] - counts
    if "jackknife" in sums:
        diagnostics["elm_nll_jackknife_approximate"] = claimed + sums["jackknife"]
    return out, diagnostics


def _fields(quantities: dict[str, Tensor], counts: Tensor) -> dict[str, float | None]:
    """Mean per unit and, under the name with ``_se``, its standard error."""
    fields = {}
    for name, sums in quantities.items():
        fields[name], fields[f"{name}_se"] = ratio_estimate(sums, counts)
    return fields
