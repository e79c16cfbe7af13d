"""Results of evaluation tasks for several distributions of one model: JSON and a printed table."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .document_totals import Estimate
from .run_folder import write_atomically


if TYPE_CHECKING:
    from rich.table import Table

TITLES = {
    "lm": "LM",
    "elm": "ELM",
    "elm_lower": "ELM, at least",
    "elm_upper": "ELM, at most",
    "s1": "system 1",
    "s2": "system 2",
}


@dataclass
class TaskResults:
    """What `hf_elm.harness_evaluation.evaluate_tasks` found.

    Attributes:
        checkpoint: the model.
        results: column -> what the harness's ``simple_evaluate`` returned, without samples.
        differences: task -> "metric,filter" -> second minus first column, paired by document, with its standard error.
        undecided: multiple-choice task -> how many questions there were, and how many of the answers the interval of log Z
            leaves open.
        scoring: how log-likelihoods were found.
        parameters: of the whole model.
        samples: column -> task -> the harness's record of each document.
    """

    checkpoint: str
    results: dict[str, dict[str, Any]]
    differences: dict[str, dict[str, Estimate]]
    undecided: dict[str, dict[str, int]]
    scoring: dict[str, Any]
    parameters: int
    samples: dict[str, dict[str, list]] = field(default_factory=dict)

    def to_dict(self, log_samples: bool = False) -> dict[str, Any]:
        """Everything but the samples, which ``log_samples`` adds."""
        kept = {name: value for name, value in vars(self).items() if log_samples or name != "samples"}
        kept["differences"] = {
            task: {name: each._asdict() for name, each in metrics.items()}
            for task, metrics in self.differences.items()
        }
        return kept

    def to_json(self, path: str | os.PathLike, *, log_samples: bool = False) -> Path:
        """Writes the record as JSON, whole or not at all.

        Raises:
            FileExistsError: ``path`` exists.
        """
        from lm_eval.utils import handle_non_serializable

        path = Path(path)
        if path.exists():
            raise FileExistsError(f"{path} exists; choose another file or remove it first.")
        text = json.dumps(self.to_dict(log_samples), indent=2, default=handle_non_serializable)
        write_atomically(path, text + "\n")
        return path

    def value(self, column: str, task: str, metric: str) -> float:
        """``metric`` is ``"name,filter"`` as in the harness."""
        return float(self.results[column]["results"][task][metric])

    def table(self) -> Table:
        """The result as a `rich.table.Table`: a line per task and metric, a column per distribution."""
        from rich.table import Table
        from rich.text import Text

        table = Table(caption=Text(self._caption()), caption_justify="left")
        names = ("task (documents)", *(TITLES[column] for column in self.results))
        names += ("difference",) if self.differences else ()
        for name in names:
            table.add_column(name, justify="left" if name == names[0] else "right", no_wrap=name == names[0])
        last = None
        for task, count, metric in self._lines():
            if task != last:
                table.add_row(f"{task} ({count})" if count else task)
                last = task
            cells = [self._cell(column, task, metric) for column in self.results]
            if self.differences:
                cells.append(_signed(self.differences.get(task, {}).get(metric)))
            table.add_row("  " + metric.removesuffix(",none"), *cells)
        return table

    def _lines(self):
        first = next(iter(self.results.values()))
        for task, metrics in first["results"].items():
            count = first.get("n-samples", {}).get(task, {}).get("effective", "")
            for metric, value in metrics.items():
                if "," in metric and "_stderr," not in metric and not isinstance(value, str):
                    yield task, count, metric

    def _cell(self, column, task, metric):
        metrics = self.results[column]["results"].get(task, {})
        if metric not in metrics:
            return ""
        value, error = metrics[metric], metrics.get(metric.replace(",", "_stderr,", 1))
        shown = f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3e}"
        return shown if not isinstance(error, float) or error != error else f"{shown} ±{error:.4f}"

    def _caption(self) -> str:
        parts = [f"{self.parameters:,} parameters"]
        if "method" in self.scoring:
            parts.append(_log_z(self.scoring))
        if "think_steps" in self.scoring:
            parts.append(f"system 2 after {self.scoring['think_steps']} steps")
        for task, counts in self.undecided.items():
            parts.append(f"{task}: the interval leaves {counts['undecided']} of {counts['questions']} answers open")
        if any(column in self.results for column in ("elm_lower", "elm_upper")):
            parts.append("at least, at most: by the ends of the interval of log p")
        if self.differences:
            parts.append("difference = second minus first, paired by document")
        return "; ".join(parts)


def _log_z(scoring):
    if scoring["method"] == "exact":
        return f"log Z exact over {scoring['vocab_size']:,} tokens"
    if scoring["method"] == "certified":
        return f"log Z between certified ends ({scoring['exact_top']} tokens exact); ELM = {scoring['elm']}"
    return (
        f"log Z from {scoring['exact_top']} tokens exact and {scoring['num_samples']} samples, seed {scoring['seed']}; "
        f"ELM = {scoring['elm']}"
    )


def _signed(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    value = f"{round(estimate.value, 4) + 0.0:+.4f}"  # + 0.0: no "-0.0000"
    return value if estimate.standard_error is None else f"{value} ±{estimate.standard_error:.4f}"
