"""Whether next-token probabilities of a MonArc model's LM and ELM are frequencies: reliability diagrams and their errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .candidate_energies import CandidateEnergies, candidate_energies
from .figure_files import finish, new_figure


MODELS = ("lm", "elm")
TOP_BINS = 15  # of equal width, as in Guo et al. 2017
RESAMPLES = 1000
LEVEL = 0.95
_EDGES = np.array([0.0, *np.logspace(-5, 0, 16)])  # of all candidates' probabilities
_LABELS = {"lm": "LM", "elm": "ELM"}
_COLOURS = {"lm": "#0072B2", "elm": "#D55E00"}


@dataclass
class ReliabilityBins:
    """Predictions by their probability; sums by document, so that documents can be resampled.

    Attributes:
        counts, probs, hits: predictions, sum of their probabilities and how many came true, ``(documents, bins)``.
    """

    counts: np.ndarray
    probs: np.ndarray
    hits: np.ndarray

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean probability and frequency by bin, ``(bins)`` each; NaN where a bin is empty."""
        total = np.where(self.counts.sum(0) > 0, self.counts.sum(0), np.nan)
        return self.probs.sum(0) / total, self.hits.sum(0) / total

    def calibration_error(self, weights: np.ndarray | None = None) -> np.ndarray:
        """ECE = sum_b n_b/n |frequency_b - mean probability_b|; of resamples with ``weights`` ``(B, documents)``, ``(B)``."""
        weights = np.ones((1, len(self.counts))) if weights is None else weights
        gaps = np.abs(weights @ (self.hits - self.probs)).sum(1)
        return gaps / (weights @ self.counts).sum(1)


@dataclass
class TokenCalibration:
    """Calibration of the LM and of the ELM on the same tokens.

    Attributes:
        top: by model ("lm", "elm") the likeliest token's probability against how often it is the text's, in bins of equal width.
            With a log Z that is not exact the ELM's is the likeliest of the LM's ``exact_top`` likeliest tokens.
        pooled: by model the probability of each candidate against how often it is the text's token. Candidates are the
            vocabulary where log Z is exact, else the LM's ``exact_top`` likeliest tokens.
        top_ends: where log Z is not exact, ``top`` of the ELM at the lower and at the upper end of log Z; else empty.
        intervals: by "lm", "elm" and "difference" (ELM - LM) the interval of the ECE of ``top``: percentiles over resampled
            documents, moved so that the resamples' mean lies on the ECE. A resample's ECE is biased upwards once more than the
            ECE itself; the interval tells the noise, not that bias. Empty with one document.
        tokens, candidates: how many tokens, and candidates at each.
        is_exact, how: whether log Z is, and how it was found.
    """

    top: dict[str, ReliabilityBins]
    pooled: dict[str, ReliabilityBins]
    top_ends: list[ReliabilityBins]
    intervals: dict[str, tuple[float, float]]
    tokens: int
    candidates: int
    is_exact: bool
    how: str

    @property
    def documents(self) -> int:
        """How many documents the tokens are of."""
        return len(self.top["lm"].counts)

    def ece(self, model: str) -> float:
        """Expected calibration error of the likeliest token, see `ReliabilityBins.calibration_error`."""
        return float(self.top[model].calibration_error()[0])


def token_calibration(model, rows: Iterable[Mapping], *, seed: int = 0, **options) -> TokenCalibration:
    """Reliability of the next-token probabilities on ``rows``.

    The ECE of a finite sample is biased upwards, more with fewer tokens; both models have the same tokens.

    Args:
        seed: of the rows' order, the samples and the resampled documents.
        options: of `candidate_energies`, which also says what is refused.
    """
    top: dict[str, list] = {}
    pooled: dict[str, list] = {name: [] for name in MODELS}
    documents, tokens, last = [], 0, None
    for batch in candidate_energies(model, rows, seed=seed, **options):
        documents.append(batch.documents)
        tokens += len(batch.targets)
        for name, found in _top_predictions(batch).items():
            top.setdefault(name, []).append(found)
        for name in MODELS:
            pooled[name].append(_pooled_bins(batch, name))
        last = batch
    clusters = torch.cat(documents).unique(dim=0, return_inverse=True)[1].numpy()
    bins = {name: _top_bins(np.concatenate(parts, 1), clusters) for name, parts in top.items()}
    return TokenCalibration(
        top={name: bins[name] for name in MODELS},
        pooled={name: _by_document(np.concatenate(parts, 1), clusters) for name, parts in pooled.items()},
        top_ends=[bins[name] for name in ("elm_lower", "elm_upper") if name in bins],
        intervals=_intervals(bins, seed),
        tokens=tokens,
        candidates=last.candidates.shape[1] if last.is_exact else last.exact_top,
        is_exact=last.is_exact,
        how=last.describe(),
    )


def _log_probs(batch: CandidateEnergies, model: str, log_z: Tensor) -> Tensor:
    """log p of the likeliest candidates (of all where log Z is exact), ``(tokens, exact_top)``; samples are left out."""
    log_probs = batch.candidate_log_probs[:, : batch.exact_top]
    if model == "lm":
        return log_probs
    return log_probs - batch.candidate_energies[:, : batch.exact_top] - log_z.unsqueeze(1)


def _top_predictions(batch: CandidateEnergies) -> dict[str, np.ndarray]:
    """(probability, whether it is the text's token) of the likeliest token, ``(2, tokens)``, by model and end of log Z."""
    kinds = {"lm": ("lm", batch.log_z), "elm": ("elm", batch.log_z)}
    if not batch.is_exact:
        kinds |= {"elm_lower": ("elm", batch.log_z_lower), "elm_upper": ("elm", batch.log_z_upper)}
    found = {}
    for name, (model, log_z) in kinds.items():
        value, place = _log_probs(batch, model, log_z).max(1)
        hit = batch.candidates.gather(1, place.unsqueeze(1)).squeeze(1) == batch.targets
        found[name] = torch.stack([value.exp().clamp(max=1.0), hit.double()]).numpy()
    return found


def _pooled_bins(batch: CandidateEnergies, model: str) -> np.ndarray:
    """Number, summed probability and hits of each token's candidates by bin, ``(3, tokens, bins)``."""
    probs = _log_probs(batch, model, batch.log_z).exp().clamp(max=1.0).numpy()
    hits = (batch.candidates[:, : batch.exact_top] == batch.targets.unsqueeze(1)).double().numpy()
    bins = len(_EDGES) - 1
    place = np.clip(np.searchsorted(_EDGES, probs, side="right") - 1, 0, bins - 1)
    flat = (place + bins * np.arange(len(probs))[:, None]).ravel()
    return np.stack(
        [
            np.bincount(flat, values.ravel(), minlength=bins * len(probs)).reshape(-1, bins)
            for values in (np.ones_like(probs), probs, hits)
        ]
    )


def _top_bins(predictions: np.ndarray, clusters: np.ndarray) -> ReliabilityBins:
    probs, hits = predictions
    place = np.clip((probs * TOP_BINS).astype(int), 0, TOP_BINS - 1)
    spread = np.zeros((3, len(probs), TOP_BINS))
    spread[:, np.arange(len(probs)), place] = np.stack([np.ones_like(probs), probs, hits])
    return _by_document(spread, clusters)


def _by_document(values: np.ndarray, clusters: np.ndarray) -> ReliabilityBins:
    """Sums of ``(3, tokens, bins)`` over the tokens of each document."""
    sums = np.zeros((3, clusters.max() + 1, values.shape[2]))
    for total, column in zip(sums, values, strict=True):
        np.add.at(total, clusters, column)
    return ReliabilityBins(*sums)


def _intervals(bins: dict[str, ReliabilityBins], seed: int) -> dict[str, tuple[float, float]]:
    documents = len(bins["lm"].counts)
    if documents < 2:
        return {}
    weights = np.random.default_rng(seed).multinomial(documents, np.full(documents, 1 / documents), size=RESAMPLES)
    errors = {name: bins[name].calibration_error(weights) for name in MODELS}
    values = {name: float(bins[name].calibration_error()[0]) for name in MODELS}
    errors["difference"], values["difference"] = errors["elm"] - errors["lm"], values["elm"] - values["lm"]
    ends = (50 * (1 - LEVEL), 50 * (1 + LEVEL))
    found = {}
    for name, resampled in errors.items():
        low, high = np.percentile(resampled, ends) - resampled.mean() + values[name]
        found[name] = (float(low if name == "difference" else max(low, 0.0)), float(high))
    return found


# ------------------------------------------------------------------------------------------------------------ picture


def plot_token_calibration(data: TokenCalibration, path=None):
    """The likeliest token's reliability and that of all candidates, with their numbers below; returns the Figure, written to
    ``path`` if given."""
    figure = new_figure(11.0, 6.6)
    axes = figure.subplots(2, 2, height_ratios=(3.2, 1.0), sharex="col")
    _draw_top(axes[0, 0], axes[1, 0], data)
    _draw_pooled(axes[0, 1], axes[1, 1], data)
    figure.suptitle(f"{data.tokens:,} tokens in {data.documents:,} documents; {data.how}", fontsize=11)
    return finish(figure, path)


def _draw_top(ax, lower, data):
    ax.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    for name, bins in data.top.items():
        label = f"{_LABELS[name]}: ECE {data.ece(name):.4f}{_interval(data.intervals.get(name))}"
        _draw_reliability(ax, bins, _COLOURS[name], label)
        lower.stairs(bins.counts.sum(0), np.linspace(0, 1, TOP_BINS + 1), color=_COLOURS[name], linewidth=1.4)
    if data.top_ends:
        ends = sorted(float(bins.calibration_error()[0]) for bins in data.top_ends)
        ax.plot([], [], " ", label=f"ELM at the ends of log Z: {ends[0]:.4f}, {ends[1]:.4f}")
    if "difference" in data.intervals:
        gap = data.ece("elm") - data.ece("lm")
        ax.plot([], [], " ", label=f"ELM − LM: {gap:+.4f}{_interval(data.intervals['difference'], '+.4f')}")
    among = "" if data.is_exact else f" among the LM's {data.candidates} likeliest"
    ax.set(title=f"the likeliest token{among}", ylabel="share that is the text's token", xlim=(0, 1), ylim=(0, 1))
    lower.set(xlabel="its probability", ylabel="tokens")
    _finish_axes(ax, lower)


def _draw_pooled(ax, lower, data):
    ax.plot([1e-6, 1], [1e-6, 1], color="black", linewidth=0.8, linestyle=":")
    edges = np.maximum(_EDGES, _EDGES[1] / 3)
    lowest = 1.0
    for name, bins in data.pooled.items():
        _draw_reliability(ax, bins, _COLOURS[name], _LABELS[name])
        lower.stairs(bins.counts.sum(0), edges, color=_COLOURS[name], linewidth=1.4)
        shown = [value[value > 0].min() for value in bins.means() if (value > 0).any()]
        lowest = min([lowest, *shown])
    which = "every token of the vocabulary" if data.is_exact else f"the LM's {data.candidates} likeliest tokens"
    ends = (max(lowest / 2, 1e-6), 1.0)
    ax.set(title=which, ylabel="share that is the text's token", xscale="log", yscale="log", xlim=ends, ylim=ends)
    lower.set(xlabel="probability; bins without a hit have no point above", ylabel="candidates", yscale="log")
    _finish_axes(ax, lower)


def _draw_reliability(ax, bins, colour, label):
    probs, frequency = bins.means()
    shown = frequency > 0 if ax.get_yscale() == "log" else np.isfinite(frequency)
    errors = _bar_errors(bins)[:, shown]
    ax.errorbar(
        probs[shown], frequency[shown], errors, color=colour, marker="o", markersize=4, capsize=2, linewidth=1.2,
        elinewidth=0.8, label=label,
    )  # fmt: skip


def _bar_errors(bins: ReliabilityBins, seed: int = 0) -> np.ndarray:
    """How far the percentile interval of each bin's frequency reaches below and above it, ``(2, bins)``."""
    documents = len(bins.counts)
    if documents < 2:
        return np.zeros((2, bins.counts.shape[1]))
    weights = np.random.default_rng(seed).multinomial(documents, np.full(documents, 1 / documents), size=RESAMPLES)
    counts, frequency = weights @ bins.counts, bins.means()[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = np.where(counts > 0, weights @ bins.hits / counts, np.nan)
    filled = np.isfinite(frequency)
    low, high = np.zeros((2, len(frequency)))
    ends = (50 * (1 - LEVEL), 50 * (1 + LEVEL))
    low[filled], high[filled] = np.nanpercentile(resampled[:, filled], ends, axis=0)
    return np.maximum(np.stack([frequency - low, high - frequency]), 0.0)


def _interval(ends: tuple[float, float] | None, form: str = ".4f") -> str:
    return "" if ends is None else f" [{ends[0]:{form}}, {ends[1]:{form}}]"


def _finish_axes(ax, lower):
    from matplotlib.lines import Line2D

    entries = zip(*ax.get_legend_handles_labels(), strict=True)
    handles, labels = zip(
        *sorted(entries, key=lambda entry: isinstance(entry[0], Line2D)), strict=True
    )  # remarks last
    ax.legend(
        handles,
        labels,
        fontsize=8,
        framealpha=0.9,
        loc="upper left",
        title="95 % intervals: documents resampled",
        title_fontsize=8,
    )
    for each in (ax, lower):
        each.grid(alpha=0.3)
