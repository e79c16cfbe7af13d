"""The metrics of a run against its optimizer steps, with the noise of their estimates: losses, energies, log Z, step sizes.

A metric of the log is a mean over the steps since the log before, and scatters. What is drawn through the logs is a local
linear fit and its standard error, so that a difference can be told from noise. Units: nats, nats/token.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np


METRICS_FILE = "metrics.jsonl"
FEWEST_LOGS = 8  # with less there is no fit, only the logs
_ALPHA = re.compile(r"alpha_\d+$")


@dataclass(frozen=True)
class Panel:
    """One axes: its title, the label of its axis, and the metrics that it shows.

    Args:
        fallback: metrics to show where none of ``names`` is there.
    """

    title: str
    label: str
    names: tuple[str, ...]
    fallback: tuple[str, ...] = ()


PANELS = (
    Panel("loss", "nats/token", ("lm_loss", "elm_nll_bound"), ("loss", "nll_s1", "nll_s2")),
    Panel("gain of the energy, at least", "LM − ELM bound (nats/token)", ("gain_bound",)),
    Panel("energy of data and of negatives", "mean E (nats)", ("energy_data", "energy_negatives")),
    Panel("normaliser", "log of mean Z (nats)", ("log_mean_z",)),
    Panel("energy loss", "nats/token", ("energy_loss",)),
    Panel("change of NLL by thinking", "NLL s2 − NLL s1 (nats/token)", ("delta_nll",)),
    Panel("fall of the free energy by thinking", "nats", ("energy_gap",)),
    Panel("contrastive losses", "nats/token", ("contrastive_loss", "info_nce_loss")),
    Panel("step sizes of thinking", "α (no unit)", ("alpha_1",)),
    Panel("masked tokens found", "share", ("masked_accuracy",)),
    Panel("cosines of queries and documents", "cosine", ("positive_cosine", "negative_cosine")),
    Panel("gradient norm, before clipping", "no unit", ("grad_norm",)),
)
_ALWAYS_THERE = "grad_norm"  # in every log of transformers; it alone is no curve of ours
_RETRIEVAL = "positive_cosine"  # logged by the trainer whose loss is of cosines, and no likelihood


@dataclass
class Curve:
    """A metric by optimizer step.

    Attributes:
        steps, values: of every log, ``(logs)``; values that were not finite are NaN.
        fit_steps, fit, lower, upper: the local linear fit and the band of one standard error of it on either side, all empty
            with fewer than `FEWEST_LOGS` finite values.
    """

    steps: np.ndarray
    values: np.ndarray
    fit_steps: np.ndarray
    fit: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


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

    def panels(self) -> list[Panel]:
        """`PANELS` with the metrics of this run, without those that it lacks; one name per learnt step size."""
        found = {name for name in self.training.keys() | self.evaluation.keys() if self._is_there(name)}
        found |= {name for name, (_, needed) in _DERIVED.items() if set(needed) <= found}
        panels = []
        for panel in PANELS:
            names = panel.names
            if names == ("alpha_1",):
                names = sorted(filter(_ALPHA.match, found), key=lambda name: int(name.partition("_")[2]))
            present = tuple(filter(found.__contains__, names)) or tuple(filter(found.__contains__, panel.fallback))
            if present:
                label = "no unit" if present == ("loss",) and _RETRIEVAL in found else panel.label
                panels.append(Panel(panel.title, label, present))
        return panels

    def curve(self, name: str, evaluation: bool = False) -> Curve | None:
        """The metric ``name`` of `panels` with its fit; None where it was not logged.

        ``gain_bound`` is lm_loss - elm_nll_bound, log by log, so that the noise of the text they share is not in its band.
        ``log_mean_z`` is the logarithm of z_hat's fit and band: the log of a mean, which is at least the mean log Z.
        """
        source = self.evaluation if evaluation else self.training
        if name == "log_mean_z":
            curve = _fitted(*source["z_hat"]) if "z_hat" in source else None
            return curve and _log_of(curve)
        if name in _DERIVED:
            combine, needed = _DERIVED[name]
            if not set(needed) <= source.keys():
                return None
            columns = [dict(zip(*source[each], strict=True)) for each in needed]
            steps = [step for step in columns[0] if all(step in column for column in columns)]
            return _fitted(steps, [combine(*(column[step] for column in columns)) for step in steps])
        return _fitted(*source[name]) if name in source else None

    def _is_there(self, name):
        """A metric of which no value is finite draws nothing."""
        values = [value for source in (self.training, self.evaluation) for value in source.get(name, ((), ()))[1]]
        return any(map(math.isfinite, values))


_DERIVED: dict[str, tuple[Callable[..., float], tuple[str, ...]]] = {
    "gain_bound": (lambda lm, elm: lm - elm, ("lm_loss", "elm_nll_bound")),
    "log_mean_z": (math.log, ("z_hat",)),
}


def training_curves(run: str | Path) -> TrainingCurves:
    """The metrics in ``metrics.jsonl`` of a run.

    Args:
        run: the run's folder, one of its checkpoints, or the file itself.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file without a line that holds a known metric.
    """
    file = metrics_file(run)
    curves = curves_of(_records(file), file.parent.name or str(file))
    if not draws_something(curves):
        known = sorted({name for panel in PANELS for name in panel.names + panel.fallback} - set(_DERIVED))
        raise ValueError(
            f"{file} holds none of the metrics that are drawn: {', '.join(known)}; is it from `hf-elm train`?"
        )
    return curves


def curves_of(records: Iterable[Mapping], name: str) -> TrainingCurves:
    """The metrics in logs with a ``step``, as `transformers.TrainerState.log_history` and ``metrics.jsonl`` hold them."""
    training, evaluation = {}, {}
    for record in records:
        for key, value in record.items():
            curves, own = (evaluation, key[5:]) if key.startswith("eval_") else (training, key)
            value = math.nan if value is None else value
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                steps, values = curves.setdefault(own, ([], []))
                steps.append(record["step"])
                values.append(float(value) if math.isfinite(value) else math.nan)
    return TrainingCurves(training, evaluation, name)


def draws_something(curves: TrainingCurves) -> bool:
    """Whether there is a panel beside those of every transformers log."""
    return any(panel.names != (_ALWAYS_THERE,) for panel in curves.panels())


def metrics_file(run: str | Path) -> Path:
    """The metrics file of a run's folder, of the run that a ``checkpoint-N`` folder belongs to, or ``run`` itself.

    Raises:
        FileNotFoundError: there is none.
    """
    run = Path(run)
    if run.is_file():
        return run
    places = [run / METRICS_FILE]
    if run.name.startswith("checkpoint-"):
        places.append(run.parent / METRICS_FILE)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"checkpoint={run} has no {METRICS_FILE}; give the folder of a run of `hf-elm train` (train.metrics_file on), or the "
            "file."
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
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield record


# ---------------------------------------------------------------------------------------------------------------- fit


def local_linear_fit(steps: np.ndarray, values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """At every log the least-squares line through the ``window`` logs around it, and the standard error of its value there.

        m_i = a + b x_i,    SE_i^2 = s^2 (1/n + (x_i - mean x)^2 / S_xx),    s^2 = residuals^2 / (n - 2)

    Windows at the ends lie inside the run and are as long as all others. Errors take the logs as independent.

    Args:
        steps: ascending, ``(logs)``.
        values: finite, ``(logs)``.
        window: at least 3.

    Returns:
        m and SE, ``(logs)`` each.
    """
    if window < 3 or window > len(values):
        raise ValueError(f"window must be from 3 to the number of logs, {len(values)}, got {window}.")
    first = np.clip(np.arange(len(values)) - window // 2, 0, len(values) - window)
    places = first[:, None] + np.arange(window)
    x, y = steps[places].astype(float), values[places]
    centre = x.mean(1)
    spread = x - centre[:, None]
    square = np.maximum((spread**2).sum(1), np.finfo(float).tiny)  # an evaluation repeated at one step
    slope = (spread * y).sum(1) / square
    away = steps - centre
    residuals = y - y.mean(1)[:, None] - slope[:, None] * spread
    variance = (residuals**2).sum(1) / (window - 2)
    return y.mean(1) + slope * away, np.sqrt(variance * (1 / window + away**2 / square))


def window_of(logs: int) -> int:
    """Logs of one local fit: a twentieth of the run, at least 5."""
    return max(5, logs // 20)


def _fitted(steps, values) -> Curve:
    steps, values = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    finite = np.isfinite(values)
    empty = np.empty(0)
    if finite.sum() < FEWEST_LOGS:
        return Curve(steps, values, empty, empty, empty, empty)
    fit, error = local_linear_fit(steps[finite], values[finite], window_of(int(finite.sum())))
    return Curve(steps, values, steps[finite], fit, fit - error, fit + error)


def _log_of(curve: Curve) -> Curve:
    """The logarithm of a positive quantity's curve; where a fit or its band reaches zero there is none."""

    def log(values):
        return np.log(np.where(values > 0, values, np.nan))

    return Curve(curve.steps, log(curve.values), curve.fit_steps, log(curve.fit), log(curve.lower), log(curve.upper))
