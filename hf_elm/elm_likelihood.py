"""The likelihood of an energy-based language model as a record: JSON and a printed table."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .run_folder import write_atomically


if TYPE_CHECKING:
    from rich.table import Table


@dataclass
class ElmLikelihood:
    """What `evaluate_elm` found. Every nll, gain, energy and log_z is in nats/token; ``*_se`` is its standard error.

    Standard errors take documents as independent and cover data and sampling of log Z, not training. An interval's lower
    end comes from a lower bound on log Z, its upper end from an upper bound: for ``"sampled"`` each holds in expectation
    over the samples, for ``"certified"`` always. With ``"exact"`` both ends are the exact value.

    Attributes:
        method: ``"exact"``, ``"sampled"`` or ``"certified"``.
        num_tokens, num_documents, num_rows: what was counted.
        num_unknown_tokens: tokens left out because they stand for text that the tokenizer does not know.
        lm_nll: of the language model inside.
        elm_nll: of the energy-based model, exact; None where only an interval is known.
        elm_nll_lower, elm_nll_upper: the interval.
        gain, gain_lower, gain_upper: ``lm_nll - elm_nll``, paired by token; positive is better than the LM.
        mean_energy: of the data.
        mean_log_z, mean_log_z_lower, mean_log_z_upper: mean over positions of log Z.
        mean_z: mean over positions of Z; unbiased. None for ``"certified"``.
        ess_fraction: mean effective fraction of LM samples under exp(-E), in (0, 1]; None for ``"certified"``.
        certified_elm_nll_lower, certified_elm_nll_upper: deterministic interval, where energies are bounded and Z is not
            exact.
        equal_compute_lm_nll: of the other LM on the same tokens; ``gain_over_equal_compute`` (and its interval) is
            ``equal_compute_lm_nll - elm_nll``, paired.
        num_bytes, lm_bits_per_byte, elm_bits_per_byte, elm_bits_per_byte_lower, elm_bits_per_byte_upper: over the bytes of
            the counted tokens, None without a tokenizer.
        vocab_size, num_samples, exact_top, seed: how log Z was found.
        diagnostics: numbers that are no likelihoods: ``claimed_nll`` assumes Z = 1, ``elm_nll_bound`` is the training
            bound lm_nll + E + Z - 1, ``elm_nll_jackknife_approximate`` bounds nothing.
    """

    method: str
    num_tokens: int
    num_documents: int
    num_rows: int
    vocab_size: int
    num_samples: int
    exact_top: int
    seed: int
    lm_nll: float
    elm_nll_lower: float
    elm_nll_upper: float
    gain_lower: float
    gain_upper: float
    mean_energy: float
    mean_log_z_lower: float
    mean_log_z_upper: float
    lm_nll_se: float | None = None
    elm_nll_lower_se: float | None = None
    elm_nll_upper_se: float | None = None
    gain_lower_se: float | None = None
    gain_upper_se: float | None = None
    mean_energy_se: float | None = None
    mean_log_z_lower_se: float | None = None
    mean_log_z_upper_se: float | None = None
    elm_nll: float | None = None
    elm_nll_se: float | None = None
    gain: float | None = None
    gain_se: float | None = None
    mean_log_z: float | None = None
    mean_log_z_se: float | None = None
    mean_z: float | None = None
    mean_z_se: float | None = None
    ess_fraction: float | None = None
    certified_elm_nll_lower: float | None = None
    certified_elm_nll_lower_se: float | None = None
    certified_elm_nll_upper: float | None = None
    certified_elm_nll_upper_se: float | None = None
    equal_compute_lm_nll: float | None = None
    equal_compute_lm_nll_se: float | None = None
    gain_over_equal_compute: float | None = None
    gain_over_equal_compute_se: float | None = None
    gain_over_equal_compute_lower: float | None = None
    gain_over_equal_compute_lower_se: float | None = None
    gain_over_equal_compute_upper: float | None = None
    gain_over_equal_compute_upper_se: float | None = None
    num_bytes: int | None = None
    lm_bits_per_byte: float | None = None
    lm_bits_per_byte_se: float | None = None
    elm_bits_per_byte: float | None = None
    elm_bits_per_byte_se: float | None = None
    elm_bits_per_byte_lower: float | None = None
    elm_bits_per_byte_lower_se: float | None = None
    elm_bits_per_byte_upper: float | None = None
    elm_bits_per_byte_upper_se: float | None = None
    num_unknown_tokens: int = 0
    diagnostics: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """Every field, with the unit of the nlls; ready for JSON, infinities as strings."""
        return {"unit": "nats/token", **{name: _finite(value) for name, value in asdict(self).items()}}

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

    def table(self) -> Table:
        """The result as a `rich.table.Table`."""
        from rich.table import Table
        from rich.text import Text

        header, *rows = self._rows()
        table = Table(
            title=Text(self._title()), caption=Text(self._caption()), title_justify="left", caption_justify="left"
        )
        for name in header:
            table.add_column(name, justify="left" if name == header[0] else "right")
        for row in rows:
            table.add_row(*row)
        return table

    def __str__(self) -> str:
        rows = self._rows()
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in cells)
            for cells in (list(enumerate(zip(row, widths, strict=True))) for row in rows)
        ]
        return "\n".join([self._title(), *(line.rstrip() for line in lines), self._caption()])

    def _title(self) -> str:
        how = {
            "exact": f"log Z exact over {self.vocab_size:,} tokens",
            "sampled": f"log Z bounded: {self.exact_top} tokens exact, {self.num_samples} samples",
            "certified": f"log Z certified from {self.exact_top} tokens and the energy bound",
        }[self.method]
        return f"{self.num_tokens:,} tokens in {self.num_documents:,} documents; {how}"

    def _caption(self) -> str:
        parts = [f"mean energy {self.mean_energy:+.4f} nats", f"E[log Z] {_interval(self, 'mean_log_z', '+.4f')} nats"]
        if self.mean_z is not None:
            parts += [f"mean Z {self.mean_z:.4f}", f"effective samples {self.ess_fraction:.1%}"]
        if self.num_unknown_tokens:
            parts.append(f"{self.num_unknown_tokens:,} tokens of text unknown to the tokenizer left out")
        return "; ".join(parts)

    def _rows(self) -> list[tuple[str, str, str, str]]:
        """Header and lines: what, nats/token, standard error, bits/byte."""
        ends = [("", "")] if self.elm_nll is not None else [("_lower", ", at least"), ("_upper", ", at most")]
        lines = [("LM", "lm_nll", "lm_bits_per_byte")]
        lines += [(f"ELM{words}", f"elm_nll{end}", f"elm_bits_per_byte{end}") for end, words in ends]
        if self.method != "certified" and self.certified_elm_nll_lower is not None:
            lines += [(f"ELM{words}, certified", f"certified_elm_nll{end}", None) for end, words in ends]
        lines += [(f"gain over its LM{words}", f"gain{end}", None) for end, words in ends]
        if self.equal_compute_lm_nll is not None:
            lines.append(("LM of equal compute", "equal_compute_lm_nll", None))
            lines += [(f"gain over that LM{words}", f"gain_over_equal_compute{end}", None) for end, words in ends]
        header = ("", "nats/token", "SE by document", "bits/byte")
        return [header, *((label, *self._cells(name, bits_name)) for label, name, bits_name in lines)]

    def _cells(self, name: str, bits_name: str | None) -> tuple[str, str, str]:
        value, error = getattr(self, name), getattr(self, f"{name}_se")
        bits = getattr(self, bits_name) if bits_name else None
        form = "+.4f" if "gain" in name else ".4f"
        return (
            format(round(value, 4) + 0.0, form),  # + 0.0: no "-0.0000"
            "n/a" if error is None else f"{error:.4f}",
            "" if bits is None else f"{bits:.4f}",
        )


def _interval(result: ElmLikelihood, name: str, form: str) -> str:
    exact = getattr(result, name)
    if exact is not None:
        return format(exact, form)
    return f"in [{getattr(result, f'{name}_lower'):{form}}, {getattr(result, f'{name}_upper'):{form}}]"


def _finite(value):
    """Infinities, which JSON lacks, as strings."""
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
