"""Models beside each other on the same documents, as a record: JSON and a printed table."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .document_totals import Estimate
from .run_folder import write_atomically


if TYPE_CHECKING:
    from rich.table import Table

LABELS = {"elm_lower": "elm, log p at least", "elm_upper": "elm, log p at most"}


@dataclass
class Column:
    """One distribution of one model.

    Attributes:
        nats_per_token, bits_per_byte: with standard errors by document.
        num_tokens: counted.
        num_unknown_tokens: left out, as the tokenizer does not know their text.
        parameters: of the model, or of the LM inside where the column is that LM.
        scoring: how the likelihood was found.
        nats_difference, bits_difference: column minus baseline, paired by document; None for the baseline, and nats where the two
            cut the text into different tokens.
    """

    nats_per_token: Estimate
    bits_per_byte: Estimate
    num_tokens: int
    num_unknown_tokens: int
    parameters: int
    scoring: dict[str, Any]
    nats_difference: Estimate | None = None
    bits_difference: Estimate | None = None


@dataclass
class ModelComparison:
    """What `hf_elm.model_comparison.compare_models` found.

    Attributes:
        columns: ``"name:column"`` -> what was measured.
        checkpoints: name -> folder or Hub id.
        baseline: column that the differences are taken from.
        num_documents, num_bytes: of the text, before the first token of each document is left out.
        same_tokens: name -> whether it cuts every document into the same tokens as the baseline's model.
        window: tokens that a model saw at once; None = whole documents.
        window_origin: why so many.
        compute: name -> what its run says of its cost (see `hf_elm.spent_compute`).
    """

    columns: dict[str, Column]
    checkpoints: dict[str, str]
    baseline: str
    num_documents: int
    num_bytes: int
    same_tokens: dict[str, bool]
    window: int | None
    window_origin: str = "as asked for"
    compute: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; an estimate is ``{"value": ..., "standard_error": ...}``."""
        plain = asdict(self)
        for name, column in self.columns.items():
            for key, value in vars(column).items():
                if isinstance(value, Estimate):
                    plain["columns"][name][key] = value._asdict()
        return plain | {"notes": self.notes()}

    def to_json(self, path: str | os.PathLike) -> Path:
        """Writes the record as JSON, whole or not at all.

        Raises:
            FileExistsError: ``path`` exists.
        """
        path = Path(path)
        if path.exists():
            raise FileExistsError(f"{path} exists; choose another file or remove it first.")
        write_atomically(path, json.dumps(self.to_dict(), indent=2) + "\n")
        return path

    def notes(self) -> list[str]:
        """What a reader of the table must know."""
        notes = [f"difference = column minus {self.baseline}, paired by document; negative is better"]
        if self.window is not None:
            notes.append(f"at most {self.window:,} tokens seen at once: {self.window_origin}")
        others = [name for name, same in self.same_tokens.items() if not same]
        if others:
            notes.append(
                f"{', '.join(others)} cut the text into other tokens than {self.baseline.split(':')[0]}: nats/token are of "
                "different units there, so that only bits/byte are compared"
            )
        unknown = {label.split(":")[0]: each.num_unknown_tokens for label, each in self.columns.items()}
        notes += [f"{name} leaves {n:,} tokens of unknown text out" for name, n in unknown.items() if n]
        return notes

    def table(self) -> Table:
        """The comparison as a `rich.table.Table`."""
        from rich.table import Table
        from rich.text import Text

        title = f"{self.num_bytes:,} bytes in {self.num_documents:,} documents"
        names = "; ".join(f"{name} = {checkpoint}" for name, checkpoint in self.checkpoints.items())
        caption = "\n".join([names, *self.notes(), *self._costs()])
        table = Table(title=Text(title), title_justify="left", caption=Text(caption), caption_justify="left")
        alike = all(self.same_tokens.values())
        table.add_column("", no_wrap=True)
        for name in ("weights", "nats/token", "bits/byte", f"difference, {'nats/token' if alike else 'bits/byte'}"):
            table.add_column(name, justify="right")
        for label, column in self.columns.items():
            name, own = label.split(":")
            difference = column.nats_difference if alike else column.bits_difference
            table.add_row(
                f"{name}: {LABELS.get(own, own)}",
                f"{column.parameters:,}",
                _shown(column.nats_per_token, ".4f"),
                _shown(column.bits_per_byte, ".4f"),
                "" if difference is None else _shown(difference, "+.4f"),
            )
        return table

    def _costs(self) -> list[str]:
        return [
            f"{name}: trained on {', '.join(f'{value:,.0f} {key}' for key, value in spent.items())}"
            for name, spent in ((name, _readable(found)) for name, found in self.compute.items())
            if spent
        ]


def _readable(spent: dict[str, Any]) -> dict[str, float]:
    titles = {
        "tokens_seen": "tokens",
        "steps": "steps",
        "flos": "FLOs",
        "cpu_seconds": "CPU-s",
        "train_seconds": "seconds",
    }
    return {title: spent[name] for name, title in titles.items() if spent.get(name) is not None}


def _shown(estimate: Estimate, form: str) -> str:
    value = format(round(estimate.value, 4) + 0.0, form)  # + 0.0: no "-0.0000"
    return value if estimate.standard_error is None else f"{value} ±{estimate.standard_error:.4f}"
