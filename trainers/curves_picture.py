"""A run's curves as a picture: the logs faint, the fit through them with its band of noise, evaluations as points."""

import logging
import os
import tempfile
from pathlib import Path

import numpy as np

from .figures import new_figure
from .training_curves import Curve, TrainingCurves, curves_of, draws_something


logger = logging.getLogger(__name__)
PICTURE_FILE = "curves.png"
MARK = "hf_elm training curves"  # in the file, by which a picture of ours is told from the user's own
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#F0E442", "#000000")
LABELS = {
    "lm_loss": "LM",
    "elm_nll_bound": "ELM, at most (bound)",
    "gain_bound": "LM − ELM bound",
    "log_mean_z": "log of mean z_hat",
    "energy_data": "data",
    "energy_negatives": "negatives from the LM",
}
_REFERENCE_LINES = {"delta_nll", "energy_gap", "energy_data", "gain_bound", "log_mean_z"}  # where 0 means something
_HEAD = 0.2  # share of a run that may leave the picture, so that the rest can be told apart


def plot_training_curves(data: TrainingCurves):
    """One panel per kind of metric, each with its unit; returns the Figure.

    Bands are one standard error of a local linear fit to the logs, see `local_linear_fit`.
    """
    panels = data.panels()
    columns = {1: 1, 2: 2, 4: 2}.get(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = new_figure(4.9 * columns + 0.4, 3.3 * rows + 0.7)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax, panel in zip(axes, panels, strict=False):
        ax.set(title=panel.title, xlabel="optimizer step", ylabel=panel.label)
        ax.title.set_fontsize(11)
        _draw_panel(ax, data, panel.names)
    for ax in axes[len(panels) :]:
        ax.remove()
    lines = "faint: the logs; lines: local linear fits; bands: ± 1 standard error of these; diamonds: held out"
    figure.suptitle(f"Run {data.name}\n".replace("$", r"\$"), fontsize=12)
    below_title = 0.98 - 0.2 / figure.get_figheight()
    figure.text(0.5, below_title, lines, ha="center", va="top", fontsize=8.5, color="#444444")
    return figure


def _draw_panel(ax, data, names):
    drawn = []
    for index, name in enumerate(names):
        colour = COLOURS[index % len(COLOURS)]
        label = LABELS.get(name, name)
        if (curve := data.curve(name)) is not None:
            _draw_curve(ax, curve, colour, label)
            drawn.append(curve)
        if (held_out := data.curve(name, evaluation=True)) is not None:
            ax.plot(
                held_out.steps, held_out.values, linestyle="none", marker="D", markersize=5, markerfacecolor=colour,
                markeredgecolor="black", markeredgewidth=0.7, label=f"{label}, held out", zorder=5,
            )  # fmt: skip
        if name in _REFERENCE_LINES:
            ax.axhline(0.0, color="black", linewidth=0.6, zorder=1)
    if drawn:
        _leave_start_out(ax, drawn)
    ax.ticklabel_format(axis="y", useOffset=False)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, framealpha=0.85, ncols=2 if len(ax.get_legend_handles_labels()[0]) > 6 else 1)


def _draw_curve(ax, curve: Curve, colour, label):
    if not len(curve.fit):
        marker = "o" if len(curve.steps) == 1 else "."
        ax.plot(curve.steps, curve.values, marker=marker, color=colour, linewidth=1.2, label=label)
        return
    ax.plot(curve.steps, curve.values, color=colour, linewidth=0.8, alpha=0.4, zorder=2)
    ax.fill_between(curve.fit_steps, curve.lower, curve.upper, color=colour, alpha=0.25, linewidth=0, zorder=2)
    ax.plot(curve.fit_steps, curve.fit, color=colour, linewidth=1.6, label=label, zorder=3)


def _leave_start_out(ax, curves):
    """Where the first fifth of a run spans far more than all after it the axis shows what comes after, and says so."""
    last = max(curve.steps[-1] for curve in curves)
    values = np.concatenate([curve.values for curve in curves])
    later = np.concatenate([curve.values[curve.steps > _HEAD * last] for curve in curves])
    values, later = values[np.isfinite(values)], later[np.isfinite(later)]
    if len(later) < 5 or np.ptp(values) < 4 * np.ptp(later) or not np.ptp(later):
        return
    bottom, top = ax.get_ylim()
    room = 0.15 * np.ptp(later)
    low, high = max(bottom, later.min() - room), min(top, later.max() + room)
    held_out = [y for line in ax.lines if line.get_marker() == "D" for y in line.get_ydata() if np.isfinite(y)]
    low, high = min([low, *(y - room for y in held_out)]), max([high, *(y + room for y in held_out)])
    ax.set_ylim(low, high)
    if values.min() < low or values.max() > high:
        ax.set_title(f"{ax.get_title()}\n(first fifth: {values.min():.3g} to {values.max():.3g})", fontsize=9)


# --------------------------------------------------------------------------------------------------------------- file


def write_curves_picture(log_history: list[dict], folder: str | os.PathLike) -> Path | None:
    """``curves.png`` in a run's ``folder`` from the log of its trainer; None where there is nothing to draw or it cannot be.

    Never fails the run: one line tells what was in the way, such as matplotlib that is not installed. A picture of an earlier
    part of the run is replaced; a file of that name that is not ours is kept.
    """
    path = Path(folder) / PICTURE_FILE
    curves = curves_of((log for log in log_history if "step" in log), Path(folder).resolve().name)
    if not draws_something(curves):
        return None
    try:
        if path.exists() and not is_own_picture(path):
            logger.warning(f"{path} is kept: it is no picture of hf_elm's; the curves of this run were not drawn.")
            return None
        _write(path, plot_training_curves(curves))
    except Exception as error:  # a trained model is worth more than its picture
        logger.warning(f"{path} was not written: {' '.join(str(error).split())}")
        return None
    return path


def is_own_picture(path: str | os.PathLike) -> bool:
    """Whether the file is a picture that `write_curves_picture` wrote; its mark stands in the first kilobyte."""
    with Path(path).open("rb") as file:
        return MARK.encode() in file.read(1024)


def _write(path, figure):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder) / path.name
        figure.savefig(temporary, dpi=100, metadata={"Software": MARK})
        os.replace(temporary, path)
