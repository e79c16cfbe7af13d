"""N-best lists put into a new order by a model, alone or together with the first pass that made them.

With m the model's score of a candidate and f the first pass's,

    s = w m + (1 - w) f,        m = log p(text | context), divided by its length where that is asked for, or -mean E

and the list is ordered by s, highest first; candidates of equal s keep the order of the first pass. Any log-linear combination
f + lambda m has the order of w = lambda / (1 + lambda).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

from .nbest_lists import NBestList
from .text_scores import ENERGY, TextScore


LENGTHS = ("none", "tokens", "bytes")


@dataclass(frozen=True)
class RankingRule:
    """How candidates are ordered.

    Attributes:
        by: column of the model's score, see `text_scores.scorer_by`.
        weight: w in [0, 1]; 1 is the model alone.
        normalize: "none", or the length by which log p is divided: "tokens" or "bytes".
    """

    by: str
    weight: float = 1.0
    normalize: str = "none"

    def __post_init__(self):
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight must be in [0, 1] (1: the model alone), got {self.weight}.")
        if self.normalize not in LENGTHS:
            raise ValueError(f'normalize must be one of {", ".join(LENGTHS)}, got "{self.normalize}".')


@dataclass
class ScoredCandidate:
    """One candidate with all that is known of it.

    Attributes:
        text: the candidate.
        place: where it stood in the list, from 0.
        score: of the model.
        first_pass: score of the first pass, or None.
    """

    text: str
    place: int
    score: TextScore
    first_pass: float | None = None

    def value(self, rule: RankingRule, end: str = "") -> float:
        """s under ``rule``; with ``end`` "_lower" or "_upper" at that end of the interval of the model's score."""
        if rule.by == ENERGY:
            model = -self.score.energy
        else:
            name = rule.by + end if rule.by + end in self.score.log_probs else rule.by
            length = {"none": 1, "tokens": self.score.num_tokens, "bytes": len(self.text.encode("utf-8", "replace"))}
            model = self.score.log_probs[name] / length[rule.normalize]
        return model if rule.weight == 1 else rule.weight * model + (1 - rule.weight) * self.first_pass

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        first = {} if self.first_pass is None else {"first_pass": self.first_pass}
        energy = {} if self.score.energy is None else {ENERGY: self.score.energy}
        known = {"text": self.text, "place": self.place, **first, "num_tokens": self.score.num_tokens}
        return known | self.score.log_probs | energy

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> ScoredCandidate:
        """What `to_dict` wrote; ``score`` and other names of no number of ours are left out."""
        own = {"text", "place", "first_pass", "num_tokens", ENERGY, "score"}
        log_probs = {name: value for name, value in row.items() if name not in own}
        score = TextScore(log_probs, row["num_tokens"], row.get(ENERGY))
        return cls(row["text"], row["place"], score, row.get("first_pass"))


def scored_candidates(nbest: NBestList, scores: list[TextScore]) -> list[ScoredCandidate]:
    """The candidates of a list with the model's scores, in the order of the list."""
    firsts = nbest.first_pass or [None] * len(nbest.texts)
    return [
        ScoredCandidate(text, place, score, first)
        for place, (text, score, first) in enumerate(zip(nbest.texts, scores, firsts, strict=True))
    ]


def first_pass_order(candidates: list[ScoredCandidate]) -> list[ScoredCandidate]:
    """By the scores of the first pass, highest first; as they stood in the list where there are none."""
    ordered = sorted(candidates, key=lambda each: each.place)
    if any(each.first_pass is None for each in ordered):
        return ordered
    return sorted(ordered, key=lambda each: -each.first_pass)


def reranked(candidates: list[ScoredCandidate], rule: RankingRule) -> list[ScoredCandidate]:
    """By ``rule``, highest first; equal ones in the order of the first pass.

    Raises:
        ValueError: ``rule.weight`` below 1 and candidates without a score of the first pass.
    """
    if rule.weight < 1 and any(each.first_pass is None for each in candidates):
        raise ValueError(
            f"weight={rule.weight} needs a score of the first pass with every candidate; or give weight=1."
        )
    return sorted(first_pass_order(candidates), key=lambda each: -each.value(rule))


def open_swaps(ordered: list[ScoredCandidate], rule: RankingRule) -> tuple[int, bool]:
    """Pairs of candidates whose order the intervals of their scores leave open, and whether the first place is among them.

    A pair is open where the upper end of the one placed lower is above the lower end of the one placed higher. The ends hold in
    expectation over the samples (see `log_z_bounds`), or for certain with ``method="certified"``; exact scores leave none open.
    """
    ends = [(each.value(rule, "_lower"), each.value(rule, "_upper")) for each in ordered]
    if all(low == high for low, high in ends):
        return 0, False
    pairs = [(i, j) for i, j in combinations(range(len(ordered)), 2) if ends[j][1] > ends[i][0]]
    return len(pairs), any(i == 0 for i, _ in pairs)
