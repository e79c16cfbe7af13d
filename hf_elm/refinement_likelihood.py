"""The likelihood of a nanoEBM before and after thinking, beside plain GPTs, as a record: JSON and a printed table."""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .document_totals import Estimate
from .run_folder import write_atomically


if TYPE_CHECKING:
    from rich.table import Table


@dataclass
class RefinementLikelihood:
    """What `evaluate_refinement` found, on one set of tokens for all models.

    Attributes:
        num_tokens, num_documents, num_rows: what was counted.
        num_bytes: of the counted tokens' text; None without a tokenizer.
        vocab_size: of the nanoEBM.
        think_steps, more_think_steps: refinement steps of ``s2`` and of ``s2_more``.
        seed: of the order in which rows were taken.
        estimates: nats/token with standard errors that take documents as independent: ``s1_nll``, ``s2_nll``, ``s2_more_nll``;
            ``gpt_nll`` and ``equal_compute_gpt_nll`` where those models were given. Paired by token, positive where system 2 is
            better: ``thinking_gain`` (s1 - s2), ``more_thinking_gain`` (s2 - s2_more), ``gain_over_gpt``,
            ``gain_over_equal_compute``.
        bits_per_byte: the same nlls over the bytes of the counted tokens; empty without a tokenizer.
        parameters: trainable parameters of ``nano_ebm``, ``gpt``, ``equal_compute_gpt``.
        cpu_seconds: of their training, where the caller knows them.
        num_unknown_tokens: tokens left out because they stand for text that the tokenizer does not know.
    """

    num_tokens: int
    num_documents: int
    num_rows: int
    num_bytes: int | None
    vocab_size: int
    think_steps: int
    more_think_steps: int
    seed: int
    estimates: dict[str, Estimate]
    bits_per_byte: dict[str, Estimate]
    parameters: dict[str, int]
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    num_unknown_tokens: int = 0

    def to_dict(self) -> dict:
        """Flat: each estimate as ``<name>`` and ``<name>_se``, bits/byte as ``<model>_bits_per_byte``; ready for JSON."""
        plain = {name: value for name, value in vars(self).items() if name not in ("estimates", "bits_per_byte")}
        values = dict(self.estimates)
        values |= {f"{name.removesuffix('_nll')}_bits_per_byte": each for name, each in self.bits_per_byte.items()}
        flat = {
            f"{name}{end}": part for name, each in values.items() for end, part in zip(("", "_se"), each, strict=True)
        }
        return {"unit": "nats/token", **plain, **flat}

    def to_json(self, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Writes the record as JSON, whole or not at all.

        Raises:
            FileExistsError: ``path`` exists and ``overwrite`` is False.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists; pass overwrite=True to replace it.")
        write_atomically(path, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")
        return path

    def standard_errors(self, name: str) -> str:
        """``" (3.2 standard errors)"`` for a difference; empty with a single document."""
        value, error = self.estimates[name]
        return f" ({abs(value) / error:.1f} standard errors)" if error else ""

    def table(self) -> Table:
        """The result as a `rich.table.Table`."""
        from rich.table import Table
        from rich.text import Text

        title = (
            f"{self.num_tokens:,} tokens in {self.num_documents:,} documents, the same in every row; SE by document"
        )
        if self.num_unknown_tokens:
            title += f"; {self.num_unknown_tokens:,} tokens of unknown text left out"
        table = Table(title=Text(title), title_justify="left")
        for name in ("", "weights", "CPU-s", "nats/token", "SE", "bits/byte"):
            table.add_column(name, justify="right" if name else "left", no_wrap=True)
        for label, name, owner in self._lines():
            if name in self.estimates:
                table.add_row(label, *self._cells(name, owner))
        return table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=120, highlight=False)
        console.print(self.table())
        return console.file.getvalue().rstrip()

    def _lines(self):
        """(label, estimate, whose parameters and seconds stand beside it)."""
        trained, more = self.think_steps, self.more_think_steps
        return [  # short, so that the table fits into 80 columns
            ("GPT", "gpt_nll", "gpt"),
            ("GPT of equal compute", "equal_compute_gpt_nll", "equal_compute_gpt"),
            ("nanoEBM, system 1", "s1_nll", "nano_ebm"),
            (f"  system 2, {_steps(trained)}", "s2_nll", "nano_ebm"),
            (f"  system 2, {_steps(more)}", "s2_more_nll", "nano_ebm"),
            ("gain of thinking", "thinking_gain", None),
            (f"gain of {_steps(more)} over {trained}", "more_thinking_gain", None),
            ("gain over the GPT", "gain_over_gpt", None),
            ("gain over equal compute", "gain_over_equal_compute", None),
        ]

    def _cells(self, name, owner):
        value, error = self.estimates[name]
        seconds, bits = self.cpu_seconds.get(owner), self.bits_per_byte.get(name)
        return (
            f"{self.parameters[owner]:,}" if owner else "",
            "" if seconds is None else f"{seconds:.0f}",
            format(round(value, 4) + 0.0, ".4f" if owner else "+.4f"),  # + 0.0: no "-0.0000"
            "n/a" if error is None else f"{error:.4f}",
            "" if bits is None else f"{bits.value:.4f}",
        )


def _steps(number):
    return f"{number} step{'' if number == 1 else 's'}"
