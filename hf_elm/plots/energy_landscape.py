"""The free energy over the plane of logits through system 1 and system 2, with the refinement path at its true height."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .figure_files import finish, new_figure, own_axes, shown_text
from .prompt_refinement import PromptRefinement, refine_prompt


MODES = ("both", "3d", "contour")
_FLAT = 1e-4  # a path whose distance from its chord is below this share of it counts as straight


@dataclass
class EnergyLandscape:
    """F over a plane in the space of centred logits, ``z = z_0 + a u + b v`` with orthonormal u, v; all on the CPU.

    Attributes:
        along, across: coordinates a, b of the grid's columns and rows, ``(grid)``, nats (lengths of logit vectors).
        energies: F, ``(rows, columns)`` = ``(across, along)``, nats.
        path: (a, b) of the start and of each step, projected onto the plane, ``(steps + 1, 2)``, nats.
        path_energies: F there as the model reports it: that of the point itself, not of its projection, ``(steps + 1)``, nats.
        path_distances: how far each point is from the plane, ``(steps + 1)``, nats.
        is_straight: the path has one direction only, and v is a random one.
        prompt: the text before the prediction.
        likeliest: (label, probability) of the likeliest token at the start and after each step.
    """

    along: Tensor
    across: Tensor
    energies: Tensor
    path: Tensor
    path_energies: Tensor
    path_distances: Tensor
    is_straight: bool
    prompt: str
    likeliest: list[tuple[str, float]]


def energy_landscape(
    model, tokenizer, prompt: str, *, span: float = 2.0, grid: int = 61, seed: int = 0, **thinking
) -> EnergyLandscape:
    """F around the path from system 1 to system 2 after ``prompt``, nats.

    u points from z_0 to z_K; v is the direction of the largest variation of the path's points that u leaves (their first right
    singular vector once u is taken out), so that a path of up to two steps lies in the plane; a seeded random direction
    orthogonal to u where the path is straight. With length L = |z_K - z_0| the grid covers a in L/2 ± span L, b in ± span L.

    Args:
        span: half-width of the grid in units of L.
        grid: points per side.
        seed: of the random direction.
        thinking: see `refine_prompt`.

    Raises:
        ValueError: span or grid out of range; see `refine_prompt`.
    """
    check_grid(span, grid)
    return landscape_of(refine_prompt(model, tokenizer, prompt, **thinking), span=span, grid=grid, seed=seed)


def check_grid(span: float, grid: int) -> None:
    """Refuses a grid that shows nothing.

    Raises:
        ValueError: as said.
    """
    if not (math.isfinite(span) and span > 0):
        raise ValueError(f"span must be positive and finite, got {span}; 2 is usual.")
    if not 2 <= grid <= 1000:
        raise ValueError(f"grid must be from 2 to 1000 points per side, got {grid}; 61 is usual.")


@torch.no_grad()
def landscape_of(refinement: PromptRefinement, *, span: float = 2.0, grid: int = 61, seed: int = 0) -> EnergyLandscape:
    """`energy_landscape` of a refinement at hand."""
    start = refinement.logits[0]
    plane, length, is_straight = refinement_plane(refinement, seed)
    along = torch.linspace(0.5 - span, 0.5 + span, grid, dtype=start.dtype, device=start.device) * length
    across = torch.linspace(-span, span, grid, dtype=start.dtype, device=start.device) * length
    a, b = torch.meshgrid(along, across, indexing="xy")  # rows: across, columns: along
    energies = refinement.energy(start + torch.stack([a, b], -1) @ plane)
    moves = refinement.logits - start
    path = moves @ plane.T
    top = refinement.log_probs().max(-1)
    labels = refinement.labels(top.indices.tolist())
    return EnergyLandscape(
        along=along.cpu(),
        across=across.cpu(),
        energies=energies.cpu(),
        path=path.cpu(),
        path_energies=refinement.energies.cpu(),
        path_distances=(moves - path @ plane).norm(dim=-1).cpu(),
        is_straight=is_straight,
        prompt=refinement.prompt,
        likeliest=list(zip(labels, top.values.exp().tolist(), strict=True)),
    )


def refinement_plane(refinement: PromptRefinement, seed: int = 0) -> tuple[Tensor, float, bool]:
    """Orthonormal directions u, v ``(2, vocab)``, the length |z_K - z_0| in nats, and whether v is random; see above.

    Where thinking does not move the prediction (a linear energy has its minimum at the start) both directions are random and
    the length is 1.
    """
    moves = refinement.logits - refinement.logits[0]  # (steps + 1, vocab)
    length = moves[-1].norm().item()
    moved = length > 1e-4 * max(refinement.logits[0].norm().item(), 1e-6)
    first = moves[-1] / length if moved else _random_direction(refinement, seed)
    rest = moves - (moves @ first)[:, None] * first
    _, sizes, directions = torch.linalg.svd(rest, full_matrices=False)
    is_straight = not moved or sizes[0].item() < _FLAT * length
    second = _random_direction(refinement, seed + 1, first) if is_straight else directions[0]
    length = length if moved else 1.0
    sides = refinement.energy(refinement.logits[-1] + length * torch.stack([-second, second]))
    if sides[1] < sides[0]:  # the higher side lies behind in the perspective, where it hides nothing
        second = -second
    return torch.stack([first, second]), length, is_straight


def _random_direction(refinement, seed, orthogonal_to=None):
    """A unit vector among the centred logits of the candidates, the same on every device."""
    logits, candidates = refinement.logits[0], refinement.objective.candidates
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(logits.shape, generator=generator).to(logits)
    allowed = torch.ones_like(logits, dtype=torch.bool) if candidates is None else candidates[0, 0]
    direction = (direction - direction[allowed].mean()).masked_fill(~allowed, 0.0)
    if orthogonal_to is not None:
        direction = direction - (direction @ orthogonal_to) * orthogonal_to
    return direction / direction.norm().clamp(min=torch.finfo(direction.dtype).tiny)


# ------------------------------------------------------------------------------------------------------------ picture


def plot_energy_landscape(data: EnergyLandscape, mode: str = "both", ax=None, path=None):
    """Surface in 3-D, contour, or both side by side, with system 1 (green dot), the steps and system 2 (red star).

    Args:
        mode: "both", "3d" or "contour".
        ax: draw into these axes (for "3d" of projection "3d"); not with "both".
        path: also write the figure to this new file (PNG, PDF or SVG).

    Returns:
        The matplotlib Figure.

    Raises:
        ValueError: an unknown mode, ``ax`` with "both".
    """
    if mode not in MODES:
        raise ValueError(f'mode must be one of {", ".join(MODES)}, got "{mode}".')
    if mode == "both":
        if ax is not None:
            raise ValueError('ax holds one picture; pass mode="3d" or mode="contour", or leave ax out.')
        figure = new_figure(11.5, 5.0)
        draw_surface(figure.add_subplot(1, 2, 1, projection="3d"), data)
        draw_contour(figure.add_subplot(1, 2, 2), data)
    elif mode == "3d":
        figure, ax = own_axes(ax, 7.0, 5.8, projection="3d")
        draw_surface(ax, data)
    else:
        figure, ax = own_axes(ax, 7.0, 5.4)
        draw_contour(ax, data)
    figure.suptitle(landscape_title(data), fontsize=11)
    return finish(figure, path)


def landscape_title(data: EnergyLandscape) -> str:
    """What the picture shows, in two lines."""
    (first, p_first), (last, p_last) = data.likeliest[0], data.likeliest[-1]
    fall = data.path_energies[0].item() - data.path_energies[-1].item()
    prompt = data.prompt if len(data.prompt) <= 48 else f"…{data.prompt[-47:]}"
    return shown_text(
        f"Free energy of the prediction after {prompt!r}\n"
        f"system 1: {first} {p_first:.0%}    {len(data.path) - 1} steps: {last} {p_last:.0%}    F falls by {fall:.3g} nats"
    )


def draw_contour(ax, data: EnergyLandscape, colour_bar: bool = True):
    """Level lines, dense near the bottom, and the path on top."""
    levels, norm = _levels(data.energies)
    filled = ax.contourf(data.along, data.across, data.energies, levels=levels, norm=norm, cmap="viridis")
    lines = {"colors": "white", "linewidths": 0.4, "linestyles": "solid", "alpha": 0.6}
    ax.contour(data.along, data.across, data.energies, levels=levels, **lines)
    _draw_path(ax, *data.path.T.tolist())
    ax.set_xlabel("along z$_K$ − z$_0$ (nats)")
    ax.set_ylabel(_across_label(data))
    ax.set_aspect("equal")
    ax.legend(loc="upper left", fontsize=8, framealpha=0.9)
    if colour_bar:
        digits = max(0, -math.floor(math.log10(levels[4] - levels[0])))  # F may be large and the levels close
        bar = ax.figure.colorbar(filled, ax=ax, label="free energy F (nats)", format=f"%.{digits}f")
        bar.set_ticks(levels[::4])
    return filled


def draw_surface(ax, data: EnergyLandscape):
    """The surface in perspective; the path is drawn over it at its own F."""
    _, norm = _levels(data.energies)
    a, b = torch.meshgrid(data.along, data.across, indexing="xy")
    ax.computed_zorder = False  # else the surface hides the path or not depending on the view
    ax.plot_surface(
        a.numpy(), b.numpy(), data.energies.numpy(), cmap="viridis", norm=norm, alpha=0.85, linewidth=0, zorder=1,
        rcount=60, ccount=60,
    )  # fmt: skip
    _draw_path(ax, *data.path.T.tolist(), data.path_energies.tolist())
    ax.set_xlabel("along z$_K$ − z$_0$ (nats)")
    ax.set_ylabel("across (nats)")
    ax.set_zlabel("free energy F (nats)", labelpad=10)
    ax.locator_params(axis="z", nbins=6)
    ax.view_init(elev=38, azim=-62)
    ax.tick_params(labelsize=8)
    ax.set_box_aspect(None, zoom=0.95)  # room for the labels


def _draw_path(ax, *coordinates):
    ax.plot(*coordinates, color="black", linewidth=1.6, marker="o", markersize=4, zorder=10)
    start, end = ([[value[i]] for value in coordinates] for i in (0, -1))
    shape = {"linestyle": "none", "markeredgecolor": "black", "markeredgewidth": 0.8}
    ax.plot(*start, marker="o", markersize=9, color="tab:green", label="system 1", zorder=11, **shape)
    ax.plot(*end, marker="*", markersize=15, color="tab:red", label="system 2", zorder=12, **shape)


def _levels(energies):
    """Levels whose distances grow from the bottom, and the norm that gives them even colours."""
    from matplotlib.colors import PowerNorm

    low, high = energies.min().item(), energies.max().item()
    high = max(high, low + 1e-6 * max(1.0, abs(low)))
    levels = [low + (high - low) * (i / 24) ** 2 for i in range(25)]
    return levels, PowerNorm(0.5, vmin=low, vmax=high)


def _across_label(data):
    return "across, random direction (nats)" if data.is_straight else "across, 2nd direction of the path (nats)"
