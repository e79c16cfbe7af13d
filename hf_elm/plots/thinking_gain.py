"""How much thinking lowers the NLL of held-out text: by the number of steps, by token, and by the entropy of system 1."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..document_totals import ratio_estimate
from ..evaluation_rows import row_batches
from ..modeling.nano_ebm.refinement_loss import next_token_targets
from .figure_files import finish, new_figure
from .prompt_refinement import evaluating
from .refinement_trajectory import whole_steps


_ENTRIES_PER_CALL = 2**26  # steps * rows * seq * vocabulary of the kept logits


@dataclass
class ThinkingGain:
    """NLL with 0, 1, … N steps on the same tokens; standard errors take rows as independent. On the CPU, nats/token.

    Attributes:
        nll, nll_errors: mean and its standard error at each number of steps, ``(N + 1)``; errors are NaN with one row.
        gains, gain_errors: mean NLL minus that of system 1, and the standard error of this paired difference, ``(N + 1)``.
        steps: number of steps of the two fields below: that of the configuration, or N where it is larger.
        deltas: NLL after ``steps`` steps minus that of system 1, ``(tokens)``; negative where thinking helps.
        entropies: of system 1, nats, ``(tokens)``.
        rows: row of each token, ``(tokens)``.
    """

    nll: Tensor
    nll_errors: Tensor
    gains: Tensor
    gain_errors: Tensor
    steps: int
    deltas: Tensor
    entropies: Tensor
    rows: Tensor


@dataclass
class EntropyBins:
    """Mean of ``ThinkingGain.deltas`` by the entropy of system 1: bins of equally many tokens.

    Attributes:
        entropies, deltas, errors: mean entropy, mean difference and its standard error by row, ``(bins)``; nats.
        edges: of the bins, ``(bins + 1)``, nats.
    """

    entropies: Tensor
    deltas: Tensor
    errors: Tensor
    edges: Tensor


@torch.no_grad()
def thinking_gain(
    model, rows: Iterable[Mapping], *, think_steps: int = 8, max_tokens: int | None = 20_000, **thinking
) -> ThinkingGain:
    """NLL on ``rows`` with 0 to ``think_steps`` steps, all from one refinement per row, nats/token.

    Args:
        model: `NanoEBMForRefinement`.
        rows: packed rows, as `hf_elm.trainers.packing.pack_rows` makes them.
        think_steps: N.
        max_tokens: stop after the row in which so many targets are reached; None = all rows.
        thinking: ``think_lr``, ``think_max_move``, ``think_tolerance`` of the model's forward.

    Raises:
        ValueError: fewer than one step or token, rows that the model cannot take or without a target.
    """
    for name, value in (("think_steps", think_steps), ("max_tokens", max_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    thinking = {name: value for name, value in thinking.items() if value is not None}
    positions, vocabulary = model.max_positions(), model.config.vocab_size
    batch_size = max(1, min(16, _ENTRIES_PER_CALL // ((think_steps + 1) * vocabulary * (positions or 512))))
    parts, count = [], 0
    with evaluating(model):
        for batch in row_batches(rows, batch_size, positions, vocabulary):
            parts.append(_token_nll(model, batch, think_steps, thinking))
            count += len(parts[-1][0])
            if max_tokens is not None and count >= max_tokens:
                break
    if not count:
        raise ValueError("rows hold no target: every document has one token; give longer text.")
    nll, entropies, numbers = (torch.cat(values) for values in zip(*parts, strict=True))
    return _summary(nll, entropies, numbers, min(model.config.think_steps or think_steps, think_steps))


def _token_nll(model, batch, think_steps, thinking):
    """NLL at each number of steps ``(tokens, steps + 1)``, entropy of system 1 and row number ``(tokens)`` of a batch's targets."""
    inputs = batch.model_inputs(model.device)
    labels = batch.input_ids.masked_fill(~batch.counted, -100).to(model.device)
    targets = next_token_targets(labels, inputs.get("attention_mask"), inputs.get("segment_ids"))
    counted = targets != -100
    trajectory = model(
        **inputs, use_thinking=True, think_steps=think_steps, output_energies=False, output_trajectory=True, **thinking
    ).trajectory
    nll = []
    for logits in trajectory:  # one step at a time: float64 of all of them would be large
        log_probs = logits[counted].double().log_softmax(-1)
        nll.append(-log_probs.gather(-1, targets[counted].unsqueeze(-1)).squeeze(-1))
        if len(nll) == 1:
            entropies = -(log_probs.exp() * log_probs).sum(-1)
    numbers = batch.first_row + counted.nonzero()[:, 0]
    return torch.stack(nll, -1).cpu(), entropies.cpu(), numbers.cpu()


def _summary(nll, entropies, numbers, steps):
    rows = numbers.unique(return_inverse=True)[1]
    levels = [row_estimate(column, rows) for column in nll.unbind(1)]
    gains = [row_estimate(column - nll[:, 0], rows) for column in nll.unbind(1)]
    deltas = nll[:, steps] - nll[:, 0]
    return ThinkingGain(*_columns(levels), *_columns(gains), steps, deltas, entropies, rows)


def row_estimate(values: Tensor, rows: Tensor) -> tuple[float, float]:
    """Mean of ``values`` ``(tokens)`` and its standard error with ``rows`` ``(tokens)`` as clusters; NaN with one row."""
    clusters = rows.unique(return_inverse=True)[1]
    sums = values.new_zeros(int(clusters.max()) + 1).index_add_(0, clusters, values)
    estimate = ratio_estimate(sums, clusters.bincount())
    return estimate.value, float("nan") if estimate.standard_error is None else estimate.standard_error


def _columns(estimates):
    return torch.tensor(estimates, dtype=torch.float64).unbind(1)


def entropy_bins(gain: ThinkingGain, bins: int = 10) -> EntropyBins:
    """Where thinking helps: ``gain.deltas`` averaged over bins of the entropy of system 1, nats/token."""
    quantiles = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    ordered = gain.entropies.sort().values  # torch.quantile takes 16 million values at most
    edges = ordered[(quantiles * (len(ordered) - 1)).round().long()].unique()
    index = torch.bucketize(gain.entropies, edges[1:-1], right=True)
    means, estimates = [], []
    for number in index.unique():
        inside = index == number
        means.append(gain.entropies[inside].mean())
        estimates.append(row_estimate(gain.deltas[inside], gain.rows[inside]))
    return EntropyBins(torch.stack(means), *_columns(estimates), edges)


# ------------------------------------------------------------------------------------------------------------ picture


def plot_thinking_gain(data: ThinkingGain, path=None):
    """Two by two: NLL and its change against steps, the change by token and by entropy; returns the Figure, written to ``path`` if
    given."""
    figure = new_figure(11.0, 7.6)
    axes = figure.subplots(2, 2)
    _draw_steps(axes[0, 0], data.nll, data.nll_errors, "NLL by thinking", "NLL (nats/token)")
    _draw_steps(axes[0, 1], data.gains, data.gain_errors, "change of NLL", "NLL − NLL of system 1 (nats/token)")
    axes[0, 1].axhline(0, color="black", linewidth=0.6)
    _draw_histogram(axes[1, 0], data)
    _draw_entropy(axes[1, 1], data)
    tokens, rows = len(data.deltas), int(data.rows.max()) + 1
    figure.suptitle(
        f"Where thinking helps: {tokens:,} tokens in {rows:,} rows; bars: standard error by row", fontsize=12
    )
    return finish(figure, path)


def _draw_steps(ax, values, errors, title, label):
    steps = range(len(values))
    ax.errorbar(steps, values, errors.nan_to_num(), color="#0072B2", marker="o", markersize=5, capsize=3)
    whole_steps(ax.xaxis, len(values) - 1)
    ax.ticklabel_format(axis="y", useOffset=False)
    ax.grid(alpha=0.3)
    ax.set(title=title, xlabel="think_steps", ylabel=label)


def _draw_histogram(ax, data):
    """The middle 99 % of the tokens; those beyond stand in the outermost bins."""
    ordered = data.deltas.sort().values
    low, high = (ordered[int(share * (len(ordered) - 1))].item() for share in (0.005, 0.995))
    low, high = min(low, -1e-3), max(high, 1e-3)
    ax.hist(
        data.deltas.clamp(low, high), bins=60, range=(low, high), color="#56B4E9", edgecolor="white", linewidth=0.3
    )
    mean, helped = data.deltas.mean().item(), (data.deltas < 0).double().mean().item()
    ax.axvline(0, color="black", linewidth=0.6)
    ax.axvline(mean, color="#D55E00", label=f"mean {mean:+.4f}")
    ax.plot([], [], " ", label=f"lower at {helped:.0%} of the tokens")
    step = "1 step" if data.steps == 1 else f"{data.steps} steps"
    ax.set(title=f"by token, after {step}", xlabel="NLL − NLL of system 1 (nats)", ylabel="tokens")
    ax.legend(fontsize=8)


def _draw_entropy(ax, data):
    bins = entropy_bins(data)
    ax.errorbar(
        bins.entropies, bins.deltas, bins.errors.nan_to_num(), color="#0072B2", marker="o", markersize=5, capsize=3
    )
    ax.axhline(0, color="black", linewidth=0.6)
    ax.grid(alpha=0.3)
    ax.set(
        title="by entropy of system 1, a tenth of the tokens each",
        xlabel="entropy of system 1 (nats)",
        ylabel="NLL − NLL of system 1 (nats/token)",
    )
