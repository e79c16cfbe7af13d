"""A film of the descent: the likeliest tokens' probabilities as bars, and the prediction moving over the free energy."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .energy_landscape import (
    EnergyLandscape,
    check_grid,
    draw_contour,
    landscape_of,
    landscape_title,
    refinement_plane,
)
from .figure_files import check_output, new_figure, shown_text, write_new
from .prompt_refinement import refine_prompt
from .refinement_trajectory import likeliest_tokens


SUFFIXES = (".gif",)


@dataclass
class DescentAnimation:
    """Frames on the straight lines between steps: every point of them is where a smaller step size would have led. On the CPU.

    Attributes:
        landscape: the plane around the path, see `EnergyLandscape`.
        steps: how far each frame is, in steps: 0 = system 1, ``(frames)``.
        points: coordinates in the plane, ``(frames, 2)``, nats.
        energies: F, ``(frames)``, nats.
        labels: the tokens shown.
        probs: their probabilities, ``(frames, tokens)``.
    """

    landscape: EnergyLandscape
    steps: Tensor
    points: Tensor
    energies: Tensor
    labels: list[str]
    probs: Tensor


def descent_animation(
    model, tokenizer, prompt: str, *, num_tokens: int = 8, frames_per_step: int = 8, span: float = 2.0, grid: int = 61,
    seed: int = 0, **thinking,
) -> DescentAnimation:  # fmt: skip
    """The frames of the refinement after ``prompt``.

    Args:
        num_tokens: bars.
        frames_per_step: frames from one step to the next.
        span, grid, seed: see `energy_landscape`.
        thinking: see `refine_prompt`, which also says what is refused.
    """
    check_grid(span, grid)
    if frames_per_step < 1:
        raise ValueError(f"frames_per_step must be at least 1, got {frames_per_step}.")
    refinement = refine_prompt(model, tokenizer, prompt, **thinking)
    return _frames_of(refinement, num_tokens, frames_per_step, span, grid, seed)


@torch.no_grad()
def _frames_of(refinement, num_tokens, frames_per_step, span, grid, seed):
    path = refinement.logits
    count = (len(path) - 1) * frames_per_step + 1
    steps = torch.arange(count, dtype=path.dtype, device=path.device) / frames_per_step
    before = steps.floor().long().clamp(max=len(path) - 2)
    share = (steps - before).unsqueeze(1)
    points = (1 - share) * path[before] + share * path[before + 1]  # (frames, vocab)
    plane, _, _ = refinement_plane(refinement, seed)
    probs = refinement.log_probs(points).exp()
    tokens = likeliest_tokens(probs, num_tokens)
    return DescentAnimation(
        landscape=landscape_of(refinement, span=span, grid=grid, seed=seed),
        steps=steps.cpu(),
        points=((points - path[0]) @ plane.T).cpu(),
        energies=refinement.energy(points).cpu(),
        labels=refinement.labels(tokens.tolist()),
        probs=probs[:, tokens].cpu(),
    )


# ------------------------------------------------------------------------------------------------------------ picture


def plot_descent_frame(data: DescentAnimation, frame: int = -1):
    """One frame, by default the last: bars on the left, the contour with the point on the right; returns the Figure."""
    figure, update = _scene(data)
    update(frame)
    return figure


def save_animation(data: DescentAnimation, path: str | os.PathLike, fps: int = 12, dpi: int = 80) -> Path:
    """Writes the film to the new GIF ``path``; it rests for a second at both ends, and starts again.

    Raises:
        ValueError: ``fps`` out of range; see also `hf_elm.plots.figure_files.check_output`.
    """
    check_output(path, SUFFIXES)
    check_fps(fps)
    first, *rest = film_frames(data, dpi)
    durations = [1000, *[1000 // fps] * (len(rest) - 1), 1000]  # milliseconds
    options = {"save_all": True, "append_images": rest, "duration": durations, "loop": 0}
    return write_new(path, lambda temporary: first.save(temporary, **options))


def check_fps(fps: int) -> None:
    """Refuses a speed that players of GIFs do not follow.

    Raises:
        ValueError: as said.
    """
    if not 1 <= fps <= 50:
        raise ValueError(f"fps must be from 1 to 50, which is what GIF players follow, got {fps}.")


def film_frames(data: DescentAnimation, dpi: int = 80) -> list:
    """The frames as Pillow images. The scene is drawn once, and what moves on top of it for each frame."""
    from PIL import Image

    figure, update = _scene(data, animated=True)
    figure.set_dpi(dpi)
    canvas = figure.canvas
    canvas.draw()
    scene = canvas.copy_from_bbox(figure.bbox)
    frames = []
    for frame in range(len(data.steps)):
        canvas.restore_region(scene)
        for artist in update(frame):
            figure.draw_artist(artist)
        image = Image.frombuffer("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba()), "raw", "RGBA", 0, 1)
        frames.append(image.convert("RGB"))
    return frames


def _scene(data, animated=False):
    """The figure, and a function that sets it to a frame and gives the artists that move, which are left out if ``animated``."""
    figure = new_figure(11.0, 5.2)
    left, right = figure.subplots(1, 2, width_ratios=(0.8, 1.0))
    places = range(len(data.labels))
    bars = left.barh(places, data.probs[0].tolist(), color="#56B4E9", animated=animated)
    left.set_yticks(list(places), [shown_text(label) for label in data.labels], family="monospace")
    left.invert_yaxis()
    left.set_xlim(0, 1.05 * data.probs.max().item())
    left.set_xlabel("probability")
    left.set_title(" ", fontsize=10)  # keeps the place of the moving one
    title = left.text(0.5, 1.02, "", transform=left.transAxes, ha="center", fontsize=10, animated=animated)
    draw_contour(right, data.landscape)
    (point,) = right.plot(
        [], [], linestyle="none", marker="o", markersize=8, markerfacecolor="white", markeredgecolor="black",
        markeredgewidth=1.5, zorder=20, animated=animated,
    )  # fmt: skip
    figure.suptitle(landscape_title(data.landscape), fontsize=11)

    def update(frame):
        for bar, width in zip(bars, data.probs[frame].tolist(), strict=True):
            bar.set_width(width)
        point.set_data(*data.points[frame].unsqueeze(1).tolist())
        title.set_text(f"step {data.steps[frame]:.1f} of {data.steps[-1]:.0f}, F = {data.energies[frame]:.4f} nats")
        return [*bars, point, title]

    return figure, update
