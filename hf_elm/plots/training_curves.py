"""The metrics of a run against its optimizer steps: losses, the gain of thinking, energies, step sizes."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from ..run_folder import METRICS
from .figure_files import finish, new_figure
from .refinement_trajectory import TOKEN_COLOURS


PANELS = (  # title, label of the axis, names of the metrics
    ("losses", "nats/token", ("loss", "nll_s1", "nll_s2", "lm_loss", "elm_nll_bound")),
    ("change of NLL by thinking", "NLL s2 − NLL s1 (nats/token)", ("delta_nll",)),
    ("fall of the free energy by thinking", "nats", ("energy_gap",)),
    ("energy of data and negatives", "mean energy (nats)", ("energy_data", "energy_negatives")),
    ("normaliser, estimated", "Z (no unit)", ("z_hat",)),
    ("energy loss", "nats/token", ("energy_loss",)),
    ("contrastive losses", "nats/token", ("contrastive_loss", "info_nce_loss")),
    ("step sizes of thinking", "α (no unit)", ("alpha_1",)),
)
_REFERENCE_LINES = {"delta_nll": 0.0, "energy_gap": 0.0, "energy_data": 0.0, "z_hat": 1.0}
_ALPHA = re.compile(r"alpha_\d+$")


@dataclass
class TrainingCurves:
    """Metrics of a run; values that were not finite are NaN.

    Attributes:
        training: name -> (steps, values) of what was logged while training.
        evaluation: the same of the evaluations, without the prefix ``eval_``.
        name: of the run.
    """

    training: dict[str, tuple[list[int], list[float]]]
    evaluation: dict[str, tuple[list[int], list[float]]]
    name: str

    def panels(self) -> list[tuple[str, str, list[str]]]:
        """(title, label, names) of `PANELS` with at least one metric of this run; one name per learnt step size."""
        found = self.training.keys() | self.evaluation.keys()
        panels = []
        for title, label, names in PANELS:
            if names == ("alpha_1",):
                names = sorted(filter(_ALPHA.match, found), key=lambda name: int(name.partition("_")[2]))
            present = [name for name in names if name in found]
            if present:
                panels.append((title, label, present))
        return panels


def training_curves(run: str | Path) -> TrainingCurves:
    """The metrics in ``metrics.jsonl`` of a run.

    Args:
        run: the run's folder, one of its checkpoints, or the file itself.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file without a line that holds a known metric.
    """
    file = metrics_file(run)
    training, evaluation = {}, {}
    for record in _records(file):
        for name, value in record.items():
            curves, own = (evaluation, name[5:]) if name.startswith("eval_") else (training, name)
            value = math.nan if value is None else value
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                steps, values = curves.setdefault(own, ([], []))
                steps.append(record["step"])
                values.append(float(value))
    curves = TrainingCurves(training, evaluation, file.parent.name or str(file))
    if not curves.panels():
        known = sorted({name for _, _, names in PANELS for name in names})
        raise ValueError(
            f"{file} holds none of the metrics that are drawn: {', '.join(known)}; is it from `hf-elm train`?"
        )
    return curves


def metrics_file(run: str | Path) -> Path:
    """The metrics file of a run's folder, of the run that a ``checkpoint-N`` folder belongs to, or ``run`` itself.

    Raises:
        FileNotFoundError: there is none.
    """
    run = Path(run)
    if run.is_file():
        return run
    places = [run / METRICS]
    if run.name.startswith("checkpoint-"):
        places.append(run.parent / METRICS)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"checkpoint={run} has no {METRICS}; give the folder of a run of `hf-elm train` (train.metrics_file on), or the file."
        )
    return found


def _records(file):
    """The lines that are JSON objects with a step; the last line of a killed run may be cut off."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not a text file of JSON lines; give the metrics.jsonl of a run.") from None
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield record


# ------------------------------------------------------------------------------------------------------------ picture


def plot_training_curves(data: TrainingCurves, path=None):
    """One panel per kind of metric, training as lines, evaluations as points; returns the Figure, written to ``path`` if given."""
    panels = data.panels()
    columns = 1 if len(panels) == 1 else 2
    rows = -(-len(panels) // columns)
    figure = new_figure(5.6 * columns + 0.4, 3.3 * rows + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax, (title, label, names) in zip(axes, panels, strict=False):
        _draw_panel(ax, data, names)
        ax.set(title=title, xlabel="optimizer step", ylabel=label)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    figure.suptitle(f"Run {data.name}".replace("$", r"\$"), fontsize=12)
    return finish(figure, path)


def _draw_panel(ax, data, names):
    for index, name in enumerate(names):
        colour = TOKEN_COLOURS[index % len(TOKEN_COLOURS)]
        if name in data.training:
            steps, values = data.training[name]
            marker = "o" if len(steps) == 1 else None
            ax.plot(steps, values, marker=marker, color=colour, linewidth=1.2, label=name)
        if name in data.evaluation:
            ax.plot(
                *data.evaluation[name], linestyle="none", marker="D", markersize=6, markerfacecolor=colour,
                markeredgecolor="black", label=f"{name}, held out",
            )  # fmt: skip
        if name in _REFERENCE_LINES:
            ax.axhline(_REFERENCE_LINES[name], color="black", linewidth=0.6)
    ax.ticklabel_format(axis="y", useOffset=False)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, framealpha=0.9)
