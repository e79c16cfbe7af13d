"""Energies of the data against those of tokens drawn from the LM and from the ELM, with log Z and the gain of each token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..document_totals import Estimate, ratio_estimate
from .candidate_energies import candidate_energies
from .figure_files import finish, new_figure


DRAWS = 8  # tokens of each kind drawn at every place
_BEYOND = "; outermost bins: and beyond"
_COLOURS = {"data": "#0072B2", "LM": "#D55E00", "ELM": "#009E73"}


@dataclass
class ResidualEnergies:
    """What a MonArc model's energy does on text; float64 on the CPU, nats.

    Attributes:
        data: E of the text's own tokens, ``(tokens)``.
        lm_draws: E of tokens drawn from the LM at the same places, ``(tokens, DRAWS)``: what the energy learns to tell apart.
        elm_draws: E of tokens drawn from the ELM there, ``(tokens, DRAWS)``. An ELM that fits has the data's energies.
        log_z_lower, log_z_upper: log Z at each place or the ends of its interval, ``(tokens)``.
        gains: log p_ELM - log p_LM = -E - log Z of each token, log Z at the middle of its interval, ``(tokens)``.
        clusters: number of each token's document, ``(tokens)``.
        how: how log Z was found.
    """

    data: Tensor
    lm_draws: Tensor
    elm_draws: Tensor
    log_z_lower: Tensor
    log_z_upper: Tensor
    gains: Tensor
    clusters: Tensor
    how: str

    def estimate(self, values: Tensor) -> Estimate:
        """Mean of ``values`` ``(tokens)`` and its standard error by document."""
        counts = self.clusters.bincount()
        return ratio_estimate(values.new_zeros(len(counts)).index_add_(0, self.clusters, values), counts)

    def separation(self) -> Estimate:
        """P(E of the text's token < E of a token of the LM at the same place), ties counted half; 1/2 = no better than chance."""
        data = self.data.unsqueeze(1)
        wins = (data < self.lm_draws).double() + 0.5 * (data == self.lm_draws)
        return self.estimate(wins.mean(1))


def residual_energies(model, rows: Iterable[Mapping], *, seed: int = 0, **options) -> ResidualEnergies:
    """Energies of the tokens of ``rows``, and of tokens that the LM and the ELM would put in their places, nats.

    Args:
        seed: of the rows' order and of the draws.
        options: of `candidate_energies`, which also says what is refused.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, list[Tensor]] = {}
    how = ""
    for batch in candidate_energies(model, rows, seed=seed, **options):
        columns = {"data": batch.energies, "log_z_lower": batch.log_z_lower, "log_z_upper": batch.log_z_upper}
        columns["gains"] = -batch.energies - batch.log_z
        columns["documents"] = batch.documents
        for name, log_weights in (("lm", batch.log_weights), ("elm", batch.log_weights - batch.candidate_energies)):
            places = torch.multinomial(log_weights.softmax(1), DRAWS, replacement=True, generator=generator)
            columns[f"{name}_draws"] = batch.candidate_energies.gather(1, places)
        for name, values in columns.items():
            parts.setdefault(name, []).append(values)
        how = batch.describe()
    together = {name: torch.cat(values) for name, values in parts.items()}
    clusters = together.pop("documents").unique(dim=0, return_inverse=True)[1]
    return ResidualEnergies(**together, clusters=clusters, how=how)


# ------------------------------------------------------------------------------------------------------------ picture


def plot_residual_energies(data: ResidualEnergies, path=None):
    """Three histograms: E of data, LM and ELM; log Z; the gain by token. Returns the Figure, written to ``path`` if given."""
    figure = new_figure(13.0, 4.4)
    left, middle, right = figure.subplots(1, 3)
    _draw_energies(left, data)
    _draw_log_z(middle, data)
    _draw_gains(right, data)
    documents = len(data.clusters.bincount())
    figure.suptitle(f"{len(data.data):,} tokens in {documents:,} documents; {data.how}", fontsize=11)
    return finish(figure, path)


def _draw_energies(ax, data):
    kinds = {"data": data.data, "LM": data.lm_draws.flatten(), "ELM": data.elm_draws.flatten()}
    low, high = _middle(torch.cat(list(kinds.values())))
    names = {"data": "the text's tokens", "LM": "drawn from the LM", "ELM": "drawn from the ELM"}
    for kind, values in kinds.items():
        mean = data.estimate(values.view(len(data.data), -1).mean(1))
        _histogram(ax, values, low, high, _COLOURS[kind], f"{names[kind]}, mean {_with_error(mean)}", kind == "data")
    chance = data.separation()
    ax.plot([], [], " ", label=f"P(text < LM) = {_with_error(chance, '.3f')}")
    ax.set(
        title="energies, lower is likelier",
        xlabel=f"E (nats){_BEYOND}",
        ylabel="density (1/nat), logarithmic",
        yscale="log",
    )
    _legend_above(ax)


def _draw_log_z(ax, data):
    log_z = (data.log_z_lower + data.log_z_upper) / 2
    low, high = _middle(log_z)
    mean = [data.estimate(end) for end in (data.log_z_lower, data.log_z_upper)]
    same = torch.equal(data.log_z_lower, data.log_z_upper)
    label = f"mean {_with_error(mean[0])}" if same else f"mean in [{mean[0].value:+.4f}, {mean[1].value:+.4f}]"
    _histogram(ax, log_z, low, high, "#56B4E9", label, True)
    ax.axvline(0.0, color="black", linewidth=0.6)
    name = f"log Z{'' if same else ', middle of its bounds'} (nats){_BEYOND}"
    ax.set(title="normalisers", xlabel=name, ylabel="density (1/nat)")
    _legend_above(ax)


def _draw_gains(ax, data):
    low, high = _middle(data.gains)
    mean, helped = data.estimate(data.gains), (data.gains > 0).double().mean().item()
    _histogram(ax, data.gains, low, high, "#56B4E9", f"mean {_with_error(mean)}", True)
    ax.axvline(0.0, color="black", linewidth=0.6)
    ax.axvline(mean.value, color="#D55E00", linewidth=1.2)
    ax.plot([], [], " ", label=f"likelier than in the LM: {helped:.0%} of the tokens")
    ax.set(title="gain by token", xlabel=f"log p_ELM − log p_LM (nats){_BEYOND}", ylabel="density (1/nat)")
    _legend_above(ax)


def _histogram(ax, values, low, high, colour, label, filled):
    """A density in which values beyond the range stand in the outermost bins."""
    style = {"histtype": "stepfilled", "alpha": 0.35} if filled else {"histtype": "step", "linewidth": 1.6}
    ax.hist(
        values.clamp(low, high).numpy(), bins=60, range=(low, high), density=True, color=colour, label=label, **style
    )


def _middle(values: Tensor) -> tuple[float, float]:
    """The range of all but half a per cent at either end; never empty."""
    ordered = values.flatten().sort().values
    low, high = (ordered[round(share * (len(ordered) - 1))].item() for share in (0.005, 0.995))
    room = max(0.02 * (high - low), 1e-3)
    return low - room, high + room


def _with_error(estimate: Estimate, form: str = "+.4f") -> str:
    error = "" if estimate.standard_error is None else f" ± {estimate.standard_error:{form.lstrip('+')}}"
    return f"{estimate.value:{form}}{error}"


def _legend_above(ax):
    """Room for the legend above the bars."""
    ax.legend(fontsize=8, framealpha=0.9, loc="upper right")
    lines = len(ax.get_legend().get_texts())
    bottom, top = ax.get_ylim()
    share = 0.09 * (lines + 0.5)
    if ax.get_yscale() == "log":
        ax.set_ylim(bottom, top * (top / bottom) ** share)
    else:
        ax.set_ylim(0, top * (1 + share))
    ax.grid(alpha=0.3)
