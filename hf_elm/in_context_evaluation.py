"""How close predictions of rows from random automata come to the truth; standard errors are by language."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from .in_context_languages import Automaton, LanguageSettings
from .run_folder import write_json


METRICS = ("legal", "tv", "kl", "nll")
QUARTERS = 4
TRUTH = "true automaton"


@dataclass(frozen=True)
class InContextScore:
    """Means over languages of one predictor.

    Attributes:
        name: of the predictor.
        means: of each metric over whole rows. ``legal``: share of places where the likeliest symbol (delimiter left out) can
            follow. ``tv``: total variation to the true distribution of the next character. ``kl``: KL(truth || prediction),
            nats. ``nll``: of the character that did follow, nats.
        standard_errors: of those, languages being independent; None with one language.
        quarters: the means by quarters of the row.
        late_errors: standard errors in the last quarter.
        kl_difference, kl_difference_error: ``kl`` minus that of the first model, paired by language, and its standard error.
        cpu_seconds: of the training, where it is known.
        parameters: of the model.
    """

    name: str
    means: dict[str, float]
    standard_errors: dict[str, float | None]
    quarters: dict[str, list[float]]
    late_errors: dict[str, float | None]
    kl_difference: float | None = None
    kl_difference_error: float | None = None
    cpu_seconds: float | None = None
    parameters: int | None = None


@dataclass(frozen=True)
class InContextResult:
    """Scores of several predictors on the same rows; printing it gives a table."""

    scores: tuple[InContextScore, ...]
    settings: LanguageSettings
    num_languages: int
    baseline: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "num_languages": self.num_languages,
            "settings": self.settings.to_dict(),
            "baseline": self.baseline,
            **self.details,
            "scores": [asdict(score) for score in self.scores],
        }

    def to_json(self, path: str) -> None:
        """Write `to_dict` to ``path``, whole or not at all."""
        write_json(path, self.to_dict())

    def table(self) -> Table:
        """The result as a `rich.table.Table`."""
        settings = self.settings
        title = (
            f"{self.num_languages} new languages of {settings.min_states} to {settings.max_states} states and up to "
            f"{settings.num_symbols} symbols, {settings.length} characters each"
        )
        caption = (
            "mean ± standard error by language; late = last quarter of the row; KL and TV to the true next character"
        )
        if self.baseline:
            caption += f"; difference = KL minus that of {self.baseline}, paired"
        table = Table(title=Text(title), caption=Text(caption), title_justify="left", caption_justify="left")
        table.add_column("", no_wrap=True)
        for name in ("legal %", "late", "TV", "late", "KL nats", "difference", "CPU-s"):
            table.add_column(name, justify="right", no_wrap=True)
        for score in self.scores:
            table.add_row(*_cells(score))
        return table

    def __str__(self) -> str:
        import io

        from rich.console import Console

        console = Console(file=io.StringIO(), width=140)
        console.print(self.table())
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def _cells(score):
    late = {metric: values[-1] for metric, values in score.quarters.items()}
    paired = score.kl_difference is not None
    return (
        score.name,
        _with_error(100 * score.means["legal"], score.standard_errors["legal"], 1, 100),
        _with_error(100 * late["legal"], score.late_errors["legal"], 1, 100),
        _with_error(score.means["tv"], score.standard_errors["tv"], 3),
        _with_error(late["tv"], score.late_errors["tv"], 3),
        _with_error(score.means["kl"], score.standard_errors["kl"], 3),
        _with_error(score.kl_difference, score.kl_difference_error, 3, sign="+") if paired else "",
        "" if score.cpu_seconds is None else f"{score.cpu_seconds:.0f}",
    )


def _with_error(value, error, digits, factor=1, sign=""):
    text = f"{round(value, digits) + 0.0:{sign}.{digits}f}"
    return text if error is None else f"{text} ± {factor * error:.{digits}f}"


def evaluate_in_context(
    problems: Sequence[tuple[Automaton, str]],
    predictions: Mapping[str, np.ndarray],
    settings: LanguageSettings,
    *,
    baseline: str | None = None,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> InContextResult:
    """Scores of each predictor, and of the true automaton: no predictor of any kind has a lower expected ``nll``.

    Args:
        problems: automata with their rows.
        predictions: name -> probabilities of the next character, ``(rows, places, characters)``, see `in_context_predictors`.
        baseline: name of the predictor whose ``kl`` the others' are compared with.
        facts: name -> further fields of its `InContextScore` (``cpu_seconds``, ``parameters``).

    Raises:
        ValueError: no problems, predictions of another shape, a baseline that is not among them.
    """
    if not problems:
        raise ValueError("problems must hold at least one automaton with its row.")
    if baseline is not None and baseline not in predictions:
        raise ValueError(f"baseline={baseline!r} is not among the predictions: {', '.join(predictions)}.")
    truth = np.stack([automaton.next_distributions(row, settings) for automaton, row in problems])
    following = np.array([[settings.characters.index(character) for character in row[1:]] for _, row in problems])
    values = {}
    for name, probs in [*predictions.items(), (TRUTH, truth)]:
        if probs.shape != truth.shape:
            raise ValueError(f"predictions[{name!r}] must have shape {truth.shape}, got {probs.shape}.")
        values[name] = _values(probs[:, :-1], truth[:, :-1], following)
    facts = facts or {}
    scores = [_score(name, each, values.get(baseline), facts.get(name, {})) for name, each in values.items()]
    return InContextResult(tuple(scores), settings, len(problems), baseline)


def _values(probs: np.ndarray, truth: np.ndarray, following: np.ndarray) -> dict[str, np.ndarray]:
    """Each metric at each place, ``(rows, places)``."""
    likeliest = probs[..., 1:].argmax(-1) + 1
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = np.where(truth > 0, truth * np.log(truth / probs), 0.0).sum(-1)
        nll = -np.log(np.take_along_axis(probs, following[..., None], -1)[..., 0])
    missing = np.abs(1 - probs.sum(-1))  # what a model gives to other tokens
    return {
        "legal": (np.take_along_axis(truth, likeliest[..., None], -1)[..., 0] > 0).astype(float),
        "tv": (np.abs(probs - truth).sum(-1) + missing) / 2,
        "kl": kl,
        "nll": nll,
    }


def _score(name, values, reference, facts) -> InContextScore:
    quarters = {metric: np.array_split(each, min(QUARTERS, each.shape[1]), axis=1) for metric, each in values.items()}
    difference = (None, None)
    if reference is not None and reference is not values and name != TRUTH:
        difference = _mean(values["kl"].mean(1) - reference["kl"].mean(1))
    whole = {metric: _mean(each.mean(1)) for metric, each in values.items()}
    late = {metric: _mean(parts[-1].mean(1)) for metric, parts in quarters.items()}
    return InContextScore(
        name,
        {metric: mean for metric, (mean, _) in whole.items()},
        {metric: error for metric, (_, error) in whole.items()},
        {metric: [float(part.mean()) for part in parts] for metric, parts in quarters.items()},
        {metric: error for metric, (_, error) in late.items()},
        *difference,
        **facts,
    )


def _mean(values: np.ndarray) -> tuple[float, float | None]:
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return float(values.mean()), error
