"""How good the first places of n-best lists are, before and after, where it is known what is right.

Per list: accuracy (1 where the first place is right), and where there is a reference the edits (insertions, deletions and
substitutions) in words and in characters that turn the first place into it. Error rates are sums of edits over sums of lengths
of the references. Standard errors take lists as independent; differences are paired by list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from .document_totals import Estimate, ratio_estimate
from .reranking import RankingRule, ScoredCandidate, first_pass_order, reranked


if TYPE_CHECKING:
    from rich.table import Table

FIRST_PASS, RANDOM, ORACLE = "first pass", "random", "oracle"
ACCURACY, WORDS, CHARACTERS = "accuracy", "word_error_rate", "character_error_rate"
METRICS = (ACCURACY, WORDS, CHARACTERS)


@dataclass
class RerankingMeasures:
    """Estimates by order and metric.

    Attributes:
        num_lists: lists of which it is known what is right.
        num_references: those of them with a reference.
        orders: name of the order -> metric -> estimate. "first pass" is before, "random" the expectation of a random place,
            "oracle" the best candidate of each list; the others are orders by the model.
        differences: order minus first pass, paired by list.
        open_lists: lists whose first place the intervals leave open, of all; None where scores are exact.
        open_swaps: pairs of candidates whose order they leave open.
        notes: what the orders are.
    """

    num_lists: int
    num_references: int
    orders: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    differences: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    open_lists: int | None = None
    open_swaps: int | None = None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; an estimate is ``{"value": ..., "standard_error": ...}``."""

        def plain(table):
            return {name: {key: each._asdict() for key, each in row.items()} for name, row in table.items()}

        own = {name: value for name, value in vars(self).items() if name not in ("orders", "differences")}
        return own | {"orders": plain(self.orders), "differences": plain(self.differences)}

    def table(self) -> Table:
        """As a `rich.table.Table`."""
        from rich.table import Table
        from rich.text import Text

        metrics = [name for name in (ACCURACY, WORDS) if name in self.orders[FIRST_PASS]]
        caption = "\n".join(
            [*self.notes, "± standard error by list; differences from the first pass are paired by list"]
        )
        title = Text(f"first places of {self.num_lists:,} lists")
        table = Table(title=title, title_justify="left", caption=Text(caption), caption_justify="left")
        table.add_column("order", no_wrap=True)
        for name in metrics:
            table.add_column({WORDS: "word errors"}.get(name, name), justify="right")
            table.add_column("difference", justify="right")
        for name, row in self.orders.items():
            cells = []
            for metric in metrics:
                difference = self.differences.get(name, {}).get(metric)
                cells += [_shown(row[metric], ".3f"), "" if difference is None else _shown(difference, "+.3f")]
            table.add_row(name, *cells)
        return table


def measure(rows: Iterable[dict[str, Any]], rules: dict[str, RankingRule]) -> RerankingMeasures | None:
    """Measures over the rows that ``hf-elm rerank`` writes, for the order of each rule; None where no row says what is right.

    Args:
        rows: with ``candidates`` as made by `ScoredCandidate.to_dict` and ``reference`` or ``label``.
        rules: name of an order -> its rule.
    """
    sums: dict[str, list[list[float]]] = {}  # order -> per list: right, word edits, character edits
    lengths: list[list[float]] = []  # per list: 1, words, characters of the reference; 0 without one
    for row in rows:
        if row.get("reference") is None and row.get("label") is None:
            continue
        candidates = sorted(map(ScoredCandidate.from_dict, row["candidates"]), key=lambda each: each.place)
        outcomes = _outcomes(candidates, row)
        lengths.append(_lengths(row))
        places = {FIRST_PASS: first_pass_order(candidates)[0].place}
        places |= {name: reranked(candidates, rule)[0].place for name, rule in rules.items()}
        found = {name: outcomes[place] for name, place in places.items()}
        found[RANDOM] = [sum(column) / len(outcomes) for column in zip(*outcomes, strict=True)]
        found[ORACLE] = [
            max(column) if k == 0 else min(column) for k, column in enumerate(zip(*outcomes, strict=True))
        ]
        for name, values in found.items():
            sums.setdefault(name, []).append(values)
    return _measures(sums, lengths) if lengths else None


def _outcomes(candidates, row) -> list[list[float]]:
    """Of each candidate at the first place: right (0 or 1), and the edits in words and characters."""
    reference = row.get("reference")
    if reference is None:
        return [[float(each.place == row["label"]), 0.0, 0.0] for each in candidates]
    words = reference.split()
    return [
        [
            float(each.text.strip() == reference.strip()),
            float(edits(each.text.split(), words)),
            float(edits(each.text.strip(), reference.strip())),
        ]
        for each in candidates
    ]


def _lengths(row) -> list[float]:
    reference = row.get("reference")
    return [1.0, 0.0, 0.0] if reference is None else [1.0, len(reference.split()), len(reference.strip())]


def _measures(sums, lengths) -> RerankingMeasures:
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in sums.items()}
    counts = torch.tensor(lengths, dtype=torch.float64)
    has_reference = counts[:, 2] > 0
    found = RerankingMeasures(len(lengths), int(has_reference.sum()))
    kept: dict[str, Callable] = {ACCURACY: lambda x: x[:, 0]}
    for k, metric in ((1, WORDS), (2, CHARACTERS)):
        if has_reference.any():
            kept[metric] = lambda x, k=k: x[has_reference, k]
    for name in (FIRST_PASS, RANDOM, *(each for each in tensors if each not in (FIRST_PASS, RANDOM, ORACLE)), ORACLE):
        found.orders[name] = {m: ratio_estimate(pick(tensors[name]), pick(counts)) for m, pick in kept.items()}
        if name != FIRST_PASS:
            change = tensors[name] - tensors[FIRST_PASS]
            found.differences[name] = {m: ratio_estimate(pick(change), pick(counts)) for m, pick in kept.items()}
    return found


def edits(first: Sequence, second: Sequence) -> int:
    """Fewest insertions, deletions and substitutions that turn ``first`` into ``second`` (Levenshtein 1966)."""
    row = list(range(len(second) + 1))
    for i, own in enumerate(first, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(second, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (own != other))
    return row[-1]


def _shown(estimate: Estimate, form: str) -> str:
    value = format(round(estimate.value, 3) + 0.0, form)  # + 0.0: no "-0.000"
    return value if estimate.standard_error is None else f"{value} ±{estimate.standard_error:.3f}"
