"""One of several sampled continuations chosen by a model's own probabilities.

likelihood    the sample of the highest log p (best of N)
energy        the sample of the lowest mean energy
vote          the answer that most samples give (self-consistency, Wang et al. 2023)
consistency   the answer of the highest  sum p(sample)  over the distinct samples that give it, so that an answer needs no second
              draw to count for what the model thinks of it (perplexity consistency, Zhou et al. 2025); samples that the mixture of
              `weibull_mixture` finds unlikely are left out (reasoning pruning)

p is that of any distribution that the samples were scored by: a language model's or an energy-based model's.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

import torch

from .weibull_mixture import unlikely


CHOICES = ("likelihood", "energy", "vote", "consistency")
LENGTHS = ("none", "tokens")


@dataclass
class Sample:
    """One continuation.

    Attributes:
        text: without what ended it.
        token_ids: its tokens with those that ended it.
        finished: whether it came to an end before the room for tokens did.
        log_probs: by column, log p(token_ids | prompt), nats.
        energy: mean energy of its tokens, nats; None where there is none.
    """

    text: str
    token_ids: tuple[int, ...]
    finished: bool = True
    log_probs: dict[str, float] = field(default_factory=dict)
    energy: float | None = None


@dataclass
class Choice:
    """What was chosen.

    Attributes:
        index: place of the chosen sample among the samples.
        sample: that sample.
        answer: what it answers; None where no sample has an answer.
        shares: of "vote" and "consistency", each answer's share of the weight, highest first; else empty.
        kept: of each sample whether it took part: it has an answer and was not pruned.
    """

    index: int
    sample: Sample
    answer: str | None
    shares: dict[str, float]
    kept: list[bool]


def answer_of(text: str, pattern: str | None = None) -> str | None:
    """The last match of ``pattern`` in ``text`` (its first group where it has one), without spaces around it; None without one.

    Without a pattern the whole text is the answer.

    Raises:
        ValueError: a pattern that is no regular expression.
    """
    if pattern is None:
        return text.strip()
    matches = list(compiled(pattern).finditer(text))
    if not matches:
        return None
    found = matches[-1].group(1 if matches[-1].re.groups else 0)
    return None if found is None else found.strip()


def compiled(pattern: str) -> re.Pattern:
    """The regular expression ``answer_pattern``.

    Raises:
        ValueError: it is none.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"answer_pattern={pattern!r} is no regular expression: {error}.") from None


def choose_sample(
    samples: list[Sample],
    choose: str = "consistency",
    by: str | None = None,
    answer_pattern: str | None = None,
    *,
    prune: bool = True,
    normalize: str = "none",
) -> Choice:
    """The chosen one of ``samples``; of equal ones the first.

    "vote" and "consistency" choose an answer, and of the samples that give it the likeliest, or the first where samples are not
    scored. Where no sample has an answer, the likeliest (or first) sample is taken.

    Args:
        by: column of ``log_probs``; None = the last one that is not an end of an interval.
        answer_pattern: see `answer_of`.
        prune: "consistency": leave unlikely samples out.
        normalize: "tokens" takes the geometric mean of a sample's token probabilities for p.

    Raises:
        ValueError: no sample, an unknown choice, samples that were not scored by ``by``, a bad pattern.
    """
    _check(samples, choose, normalize)
    scores = _scores(samples, choose, by, normalize)
    answers = [answer_of(sample.text, answer_pattern) for sample in samples]
    if choose in ("likelihood", "energy"):
        best = _first_best(range(len(samples)), scores)
        return Choice(best, samples[best], answers[best], {}, [True] * len(samples))
    kept = [answer is not None for answer in answers]
    if not any(kept):
        best = _first_best(range(len(samples)), scores)
        return Choice(best, samples[best], None, {}, kept)
    weights = [0.0] * len(samples)  # vote: each counts the same
    if choose == "consistency":
        if prune:
            kept = _pruned(scores, kept)
        weights = scores
    shares = answer_shares(samples, answers, weights, kept, distinct=choose == "consistency")
    answer = next(iter(shares))
    places = [i for i, own in enumerate(answers) if own == answer and kept[i]]
    best = _first_best(places, scores)
    return Choice(best, samples[best], answer, shares, kept)


def answer_shares(
    samples: list[Sample], answers: list[str | None], log_weights: list[float], kept: list[bool], distinct: bool
) -> dict[str, float]:
    """Each answer's share of the sum of exp(log weight), highest first; of equal ones the answer that was given first.

    Args:
        distinct: the same tokens count once, however often they were drawn.
    """
    groups: dict[str, list[float]] = {}
    seen: set[tuple[int, ...]] = set()
    for sample, answer, weight, taken in zip(samples, answers, log_weights, kept, strict=True):
        if taken and answer is not None and not (distinct and sample.token_ids in seen):
            seen.add(sample.token_ids)
            groups.setdefault(answer, []).append(weight)
    highest = max(max(weights) for weights in groups.values())
    totals = {answer: math.fsum(math.exp(w - highest) for w in weights) for answer, weights in groups.items()}
    whole = math.fsum(totals.values())
    return {answer: totals[answer] / whole for answer in sorted(totals, key=lambda answer: -totals[answer])}


def _pruned(scores, kept) -> list[bool]:
    places = [i for i, taken in enumerate(kept) if taken]
    found = unlikely(torch.tensor([scores[i] for i in places], dtype=torch.float64)).tolist()
    pruned = {i for i, low in zip(places, found, strict=True) if low}
    return [taken and i not in pruned for i, taken in enumerate(kept)]


def _first_best(places, scores: list[float]) -> int:
    return max(places, key=lambda i: (scores[i], -i))


def _scores(samples, choose, by, normalize) -> list[float]:
    """Higher is better; zeros for a vote over samples that nothing was asked about."""
    if choose == "energy":
        if any(sample.energy is None for sample in samples):
            raise ValueError('choose="energy" needs samples scored by energy, which a MonArc model has.')
        return [-sample.energy for sample in samples]
    names = [*samples[0].log_probs]
    if not names and choose == "vote":
        return [0.0] * len(samples)
    by = by if by is not None else ([name for name in names if not name.endswith(("_lower", "_upper"))] or [None])[-1]
    if any(by not in sample.log_probs for sample in samples):
        raise ValueError(f'by must be one of {", ".join(names) or "(samples are not scored)"}, got "{by}".')
    return [
        sample.log_probs[by] / (max(1, len(sample.token_ids)) if normalize == "tokens" else 1) for sample in samples
    ]


def _check(samples, choose, normalize) -> None:
    if not samples:
        raise ValueError("samples is empty; draw at least one.")
    if choose not in CHOICES:
        raise ValueError(f'choose must be one of {", ".join(CHOICES)}, got "{choose}".')
    if normalize not in LENGTHS:
        raise ValueError(f'normalize must be one of {", ".join(LENGTHS)}, got "{normalize}".')
