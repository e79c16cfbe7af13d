"""A corpus drawn from a table of scores: read, draw, join the texts, write."""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .embedding_inputs import read_inputs
from .run_folder import write_json
from .scored_tables import as_kind, check_table_output, kind_of, read_table, record_path, write_table
from .selection import Selection, select


RANK, FIRST, INCLUSION = "selection_rank", "selection_probability", "selection_inclusion_probability"
LOW_IS_BETTER = ("bits_per_byte", "nats_per_token", "energy")


@dataclass
class _Table:
    """What the draw needs to know of every row."""

    values: list[float | None]
    strata: list[Any] | None
    num_tokens: np.ndarray  # of the whole text; NaN where the table does not say
    num_bytes: np.ndarray
    texts: dict[Any, str] | None  # by id, where they are not in the table


def select_rows(
    scores: str | Path,
    output: str | Path,
    *,
    column: str = "elm_bits_per_byte",
    prefer: str | None = None,
    count: int | None = None,
    fraction: float | None = None,
    max_tokens: int | None = None,
    max_bytes: int | None = None,
    temperature: float = 1.0,
    standardize: bool = True,
    strata: str | None = None,
    seed: int = 0,
    texts: str | list[str] | None = None,
    text_column: str = "text",
    id_column: str | None = None,
) -> dict[str, Any]:
    """Writes the rows of ``scores`` that `hf_elm.selection.select` takes to ``output``, in the order of the draw; the record.

    The rows have their columns (lists by token left out), ``text``, ``selection_rank`` from 1, ``selection_probability`` and
    ``selection_inclusion_probability`` (see `Selection`), so that ``hf-elm train data.corpus=output`` reads them. A document's tokens
    are those of its whole text: its bytes at the tokens per byte of what was scored of it.

    Args:
        scores: table with a column of numbers, and ``text`` unless ``texts`` has it.
        prefer: ``"low"`` or ``"high"`` values are likelier to be taken; None: low for bits_per_byte, nats_per_token and energies.
        max_tokens, max_bytes: budgets.
        strata: name of a column.
        texts: what ``hf-elm score`` read, to be joined by id.

    Raises:
        ValueError: an unknown column, ids that do not fit, nothing to select; see also `select` and `read_table`.
        FileExistsError: the output exists.
    """
    output = check_table_output(output)
    prefer = preferred(column, prefer)
    limits = {"max_tokens": max_tokens, "max_bytes": max_bytes}
    _one_limit({"count": count, "fraction": fraction, **limits})
    table = _read(scores, column, strata, texts, text_column, id_column)
    budget, sizes = _budget(table, max_tokens, max_bytes)
    signed = [None if value is None else value if prefer == "high" else -value for value in table.values]
    options = {"temperature": temperature, "standardize": standardize, "strata": table.strata, "seed": seed}
    found = select(signed, count=count, fraction=fraction, budget=budget, sizes=sizes, **options)
    settings = {"column": column, "prefer": prefer, "count": count, "fraction": fraction, **limits}
    settings |= options | {
        "strata": strata,
        "temperature": temperature if math.isfinite(temperature) else str(temperature),
    }
    record = {"scores": str(scores), "settings": settings} | _record(table, found)
    _write(output, scores, table, found, record)
    return record


def preferred(column: str, prefer: str | None = None) -> str:
    """``prefer``, or what it is for a column where it is not said.

    Raises:
        ValueError: neither "low" nor "high".
    """
    if prefer is None:
        return "low" if any(name in column for name in LOW_IS_BETTER) else "high"
    if prefer not in ("low", "high"):
        raise ValueError(f"prefer must be low or high, got {prefer!r}.")
    return prefer


def _one_limit(limits: dict[str, Any]) -> None:
    given = [name for name, value in limits.items() if value is not None]
    if len(given) != 1:
        raise ValueError(
            f"say how much is to be taken by one of {', '.join(limits)}; got {' and '.join(given) or 'none'}."
        )
    if limits[given[0]] <= 0:
        raise ValueError(f"{given[0]} must be positive, got {limits[given[0]]}.")


def _budget(table: _Table, max_tokens: int | None, max_bytes: int | None) -> tuple[int | None, np.ndarray | None]:
    """The sum that the draw ends before, and what is summed."""
    if max_tokens is None:
        return max_bytes, None if max_bytes is None else table.num_bytes
    if np.isnan(table.num_tokens).any():
        raise ValueError(
            "max_tokens needs the columns num_tokens and num_bytes, which hf-elm score writes; give max_bytes or count."
        )
    return max_tokens, table.num_tokens


def _read(scores, column, strata, texts, text_column, id_column) -> _Table:
    joined = _texts_by_id(texts, text_column, id_column) if texts is not None else None
    values, groups, tokens, sizes = [], [], [], []
    own = {column, "num_tokens", "num_bytes", "text", "id"} | ({strata} if strata else set())
    for number, row in enumerate(read_table(scores, sorted(own))):
        _check_row(row, number, scores, column, strata, joined)
        text = row["text"] if joined is None else joined[row["id"]]
        values.append(row[column])
        groups.append(row[strata] if strata else None)
        sizes.append(len(text.encode("utf-8", errors="surrogatepass")))
        scored = row.get("num_bytes")
        rate = row["num_tokens"] / scored if scored and row.get("num_tokens") is not None else math.nan
        tokens.append(math.ceil(rate * sizes[-1] - 1e-9) if rate == rate else math.nan if scored is None else 0)
    if not values:
        raise ValueError(f"{scores} has no rows.")
    return _Table(values, groups if strata else None, np.array(tokens, float), np.array(sizes, float), joined)


def _check_row(row, number, scores, column, strata, joined) -> None:
    for option, name in (("column", column), ("strata", strata)):
        if name is not None and name not in row:
            have = ", ".join(next(iter(read_table(scores)), {}))
            raise ValueError(
                f"{option}={name} is not in row {number} of {scores}, which has {have}; name another by {option}=."
            )
    value = row[column]
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"column={column} must hold numbers; row {number} of {scores} has {value!r}.")
    if joined is None and not isinstance(row.get("text"), str):
        raise ValueError(f"row {number} of {scores} has no text; name the files that were scored by texts=.")
    if joined is not None and row.get("id") not in joined:
        raise ValueError(
            f"the id {row.get('id')!r} of row {number} of {scores} is not in texts; give the files as hf-elm score was given them."
        )


def _texts_by_id(texts, text_column, id_column) -> dict[Any, str]:
    inputs = read_inputs([texts] if isinstance(texts, str) else list(texts), text_column, id_column)
    joined = dict(zip(inputs.ids, inputs.texts, strict=True))
    if len(joined) < len(inputs.ids):
        raise ValueError(f"the ids of texts={texts} are not unique; name a column of unique ids by id_column=.")
    return joined


def _record(table: _Table, found: Selection) -> dict[str, Any]:
    """Counts and means of all that could be taken and of what was."""
    values = np.array([math.nan if value is None else value for value in table.values], dtype=np.float64)
    chosen, eligible = found.indices, np.isfinite(values)
    record: dict[str, Any] = {
        "num_documents": len(values),
        "num_eligible": found.num_eligible,
        "num_chosen": len(chosen),
    }
    for name, column in (("tokens", table.num_tokens), ("bytes", table.num_bytes)):
        if not np.isnan(column[eligible]).any():
            record |= {
                f"num_eligible_{name}": int(column[eligible].sum()),
                f"num_chosen_{name}": int(column[chosen].sum()),
            }
    record |= {"mean_of_eligible": values[eligible].mean().item(), "mean_of_chosen": values[chosen].mean().item()}
    if table.strata is not None:
        record["strata"] = _shares(table, eligible, chosen)
    return record


def _shares(table: _Table, eligible: np.ndarray, chosen: np.ndarray) -> dict[str, dict[str, int]]:
    shares: dict[str, dict[str, int]] = {}
    for label, places in (("eligible", np.flatnonzero(eligible)), ("chosen", chosen)):
        for i in places:
            own = shares.setdefault(str(table.strata[i]), {"eligible": 0, "chosen": 0})
            own[label] += 1
    return shares


def _is_by_token(name: str, value: Any) -> bool:
    """Whether it is a list with an entry per token, as hf-elm score writes; other columns may be named alike."""
    return name.startswith("token_") and isinstance(value, list)


def _write(output: Path, scores, table: _Table, found: Selection, record: dict[str, Any]) -> None:
    """The chosen rows in the order of the draw, and the record."""
    places = {int(index): rank for rank, index in enumerate(found.indices)}
    rows: list[dict[str, Any]] = [{}] * len(places)
    for number, row in enumerate(read_table(scores)):
        if (rank := places.get(number)) is None:
            continue
        text = row["text"] if table.texts is None else table.texts[row["id"]]
        kept = {name: value for name, value in row.items() if name != "text" and not _is_by_token(name, value)}
        drawn = (rank + 1, float(found.probabilities[rank]), float(found.inclusion_probabilities[rank]))
        rows[rank] = {"text": text, **kept, **dict(zip((RANK, FIRST, INCLUSION), drawn, strict=True))}
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    kinds = {name: kind_of(values) for name, values in columns.items()}
    columns = {name: as_kind(values, kinds[name]) for name, values in columns.items()}
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        finished = Path(folder) / output.name
        write_table(finished, ({name: columns[name][i] for name in names} for i in range(len(rows))), kinds)
        write_json(record_path(output), record)
        os.replace(finished, output)
