"""One refinement step by step: the parts of F, the size of the gradient, the likeliest tokens, and the cut through both ends."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .figure_files import finish, new_figure, shown_text
from .prompt_refinement import PromptRefinement, refine_prompt, spread


PART_COLOURS = {"linear": "#0072B2", "units": "#E69F00", "memory": "#009E73", "entropy": "#999999"}
PART_LABELS = {
    "linear": "linear",
    "units": "non-linear units",
    "memory": "memory",
    "entropy": "$-\\lambda H$",
}
TOKEN_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#999999", "#F0E442", "#000000")


@dataclass
class RefinementTrajectory:
    """A refinement by its steps; the first entry of each is the start. On the CPU.

    Attributes:
        energies: F as the model reports it, ``(steps + 1)``, nats.
        parts: "linear" -<h, e> (and the readout's bias), "units", "memory" and "entropy" -lambda H, each ``(steps + 1)``, nats;
            their sum is F. Parts that the model lacks are missing.
        gradient_norms: |grad F|_p = sqrt(sum_v p_v (D_v - <p, D>)^2), D = dF/dp: the norm of the natural gradient,
            ``(steps + 1)``, nats; 0 at a minimum.
        labels: the tokens that are likeliest anywhere on the path.
        probs: their probabilities, ``(steps + 1, tokens)``.
        shares: where the cut z_0 + t (z_K - z_0) is evaluated, t from 0 to 1.5, ``(points)``.
        cut: F there, ``(points)``, nats.
        step_shares: t of the projection of each z_k onto the cut, ``(steps + 1)``.
        prompt: the text before the prediction.
    """

    energies: Tensor
    parts: dict[str, Tensor]
    gradient_norms: Tensor
    labels: list[str]
    probs: Tensor
    shares: Tensor
    cut: Tensor
    step_shares: Tensor
    prompt: str


def refinement_trajectory(
    model, tokenizer, prompt: str, *, num_tokens: int = 5, points: int = 121, **thinking
) -> RefinementTrajectory:
    """The refinement after ``prompt``, step by step, nats.

    Args:
        num_tokens: how many of the likeliest tokens to follow.
        points: of the cut.
        thinking: see `refine_prompt`, which also says what is refused.
    """
    return trajectory_of(refine_prompt(model, tokenizer, prompt, **thinking), num_tokens=num_tokens, points=points)


@torch.no_grad()
def trajectory_of(refinement: PromptRefinement, *, num_tokens: int = 5, points: int = 121) -> RefinementTrajectory:
    """`refinement_trajectory` of a refinement at hand."""
    logits = refinement.logits
    probs = refinement.log_probs().exp()
    tokens = likeliest_tokens(probs, num_tokens)
    chord = logits[-1] - logits[0]
    shares = torch.linspace(0.0, 1.5, points, dtype=logits.dtype, device=logits.device)
    cut = refinement.energy(logits[0] + shares[:, None] * chord)
    square = chord.square().sum().clamp(min=torch.finfo(chord.dtype).tiny)
    return RefinementTrajectory(
        energies=refinement.energies.cpu(),
        parts={name: part.cpu() for name, part in energy_parts(refinement).items()},
        gradient_norms=natural_gradient_norms(refinement).cpu(),
        labels=refinement.labels(tokens.tolist()),
        probs=probs[:, tokens].cpu(),
        shares=shares.cpu(),
        cut=cut.cpu(),
        step_shares=((logits - logits[0]) @ chord / square).cpu(),
        prompt=refinement.prompt,
    )


def likeliest_tokens(probs: Tensor, count: int) -> Tensor:
    """The ``count`` tokens of the largest probability anywhere on the path, the likeliest at its end first, ``(count)``.

    Args:
        probs: ``(steps + 1, vocab)``.
    """
    if count < 1:
        raise ValueError(f"num_tokens must be at least 1, got {count}.")
    peak = probs.max(0).values
    tokens = peak.topk(min(count, int((peak > 0).sum()))).indices
    return tokens[probs[-1, tokens].argsort(descending=True)]


def energy_parts(refinement: PromptRefinement) -> dict[str, Tensor]:
    """The terms of F at each point of the path, ``(steps + 1)`` each, nats; see `RefinementTrajectory`.

    Each is the objective without entropy over a field that has this one term: h = 0 leaves the others without the linear one.
    """
    field, logits = refinement.field, refinement.logits[None]
    alone = {"linear": replace(field, unit_drive=None, unit_out=None, query=None, slots=None)}
    others = replace(field, hidden=torch.zeros_like(field.hidden), bias=None)
    if field.unit_drive is not None:
        alone["units"] = replace(others, query=None, slots=None)
    if field.query is not None:
        alone["memory"] = replace(others, unit_drive=None, unit_out=None)
    without_entropy = replace(refinement, objective=replace(refinement.objective, entropy_weight=0.0))
    parts = {name: replace(without_entropy, field=part).energy(logits)[0] for name, part in alone.items()}
    weight = refinement.objective.entropy_weight
    if weight:
        log_probs = refinement.log_probs()
        probs = log_probs.exp()
        parts["entropy"] = weight * (probs * log_probs.masked_fill(probs == 0, 0.0)).sum(-1)
    return parts


def natural_gradient_norms(refinement: PromptRefinement) -> Tensor:
    """Standard deviation of dF/dp under p at each point of the path, ``(steps + 1)``, nats."""
    logits = refinement.logits[None]
    probs = refinement.objective.log_probs(logits).exp()
    gradient = refinement.objective.gradient(
        spread(refinement.field, logits.shape[1]), logits
    )  # p (D - <p, D>) / temperature
    square = (gradient * refinement.objective.temperature).square() / probs
    return square.masked_fill(probs == 0, 0.0).sum(-1).sqrt()[0]


# ------------------------------------------------------------------------------------------------------------ picture


def plot_refinement_trajectory(data: RefinementTrajectory, path=None):
    """Two by two: F and its parts, |grad F|_p, the likeliest tokens, the cut; returns the Figure, written to ``path`` if given."""
    figure = new_figure(11.0, 7.6)
    axes = figure.subplots(2, 2)
    _draw_parts(axes[0, 0], data)
    _draw_gradient(axes[0, 1], data)
    _draw_tokens(axes[1, 0], data)
    _draw_cut(axes[1, 1], data)
    prompt = data.prompt if len(data.prompt) <= 60 else f"…{data.prompt[-59:]}"
    figure.suptitle(shown_text(f"Refinement of the prediction after {prompt!r}"), fontsize=12)
    return finish(figure, path)


def whole_steps(axis, steps: int) -> None:
    """Ticks at whole steps only."""
    axis.set_ticks(range(0, steps + 1, -(-steps // 12) or 1))


def _draw_parts(ax, data):
    """Change of each part since the start, stacked above and below 0, and that of F as a line: F itself differs far less
    between steps than its parts are large."""
    steps = range(len(data.energies))
    above, below = torch.zeros(len(steps)), torch.zeros(len(steps))
    for name, part in data.parts.items():
        change = (part - part[0]).float()
        bottom = torch.where(change >= 0, above, below)
        label = f"{PART_LABELS[name]}\n(starts at {part[0]:.4g})"
        ax.bar(steps, change.tolist(), bottom=bottom.tolist(), width=0.6, color=PART_COLOURS[name], label=label)
        above, below = above + change.clamp(min=0), below + change.clamp(max=0)
    fall = data.energies - data.energies[0]
    ax.plot(steps, fall, color="black", marker="o", markersize=4, label=f"F\n(starts at {data.energies[0]:.4g})")
    ax.axhline(0, color="black", linewidth=0.6)
    ax.margins(y=0.1)
    whole_steps(ax.xaxis, len(steps) - 1)
    ax.set(title="F and its parts", xlabel="step", ylabel="change since system 1 (nats)")
    _legend_beside(ax)


def _draw_gradient(ax, data):
    steps = range(len(data.gradient_norms))
    norms = data.gradient_norms.clamp(min=1e-12)
    ax.semilogy(steps, norms, color="#0072B2", marker="o", markersize=4)
    whole_steps(ax.xaxis, len(steps) - 1)
    ax.grid(alpha=0.3)
    ax.set(title="natural gradient", xlabel="step", ylabel=r"$|\nabla F|_p$ (nats)")


def _draw_tokens(ax, data):
    steps = range(len(data.probs))
    for index, label in enumerate(data.labels):
        colour, style = TOKEN_COLOURS[index % 9], ("-", "--", ":")[index // 9 % 3]
        ax.plot(steps, data.probs[:, index], style, color=colour, marker="o", markersize=4, label=shown_text(label))
    whole_steps(ax.xaxis, len(steps) - 1)
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
    ax.set(title="likeliest tokens", xlabel="step", ylabel="probability")
    _legend_beside(ax)


def _legend_beside(ax):
    ax.legend(fontsize=8, framealpha=0.9, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_cut(ax, data):
    ax.plot(data.shares, data.cut, color="#0072B2", linewidth=1.4, label=r"F on $z_0 + t\,(z_K - z_0)$")
    ax.plot(data.step_shares, data.energies, linestyle="none", marker="o", markersize=4, color="black", label="steps")
    ends = {"linestyle": "none", "markeredgecolor": "black", "markeredgewidth": 0.8}
    ax.plot(0, data.energies[0], marker="o", markersize=9, color="tab:green", label="system 1", **ends)
    ax.plot(
        data.step_shares[-1], data.energies[-1], marker="*", markersize=15, color="tab:red", label="system 2", **ends
    )
    ax.ticklabel_format(axis="y", useOffset=False)
    ax.grid(alpha=0.3)
    ax.set(
        title="cut through system 1 and system 2",
        xlabel="t (share of the way, no unit)",
        ylabel="free energy F (nats)",
    )
    ax.legend(fontsize=8, framealpha=0.9)
