"""Scores of texts that could follow a context: log-likelihoods under every distribution of a model, and the mean energy.

MonArc: ``lm`` (its language model), ``elm`` (p_LM exp(-E) / Z) and ``energy``. nanoEBM: ``s1`` before, ``s2`` after thinking.
Any other causal LM: ``lm``. Log-likelihoods in nats per text, energies in nats per token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .continuation_batch import continuation_pieces
from .continuation_scores import (
    ContinuationScore,
    ContinuationScorer,
    EnergyScorer,
    Pair,
    TokenEnergyScorer,
    scorer_of,
)
from .trainers.character_coverage import unknown_characters


ENERGY = "energy"


@dataclass
class TextScore:
    """What is known of one text.

    Attributes:
        log_probs: by column, log p(text | context), nats.
        num_tokens: tokens that were scored.
        energy: mean of E over them, nats; None where tokens have none.
    """

    log_probs: dict[str, float]
    num_tokens: int
    energy: float | None = None

    @classmethod
    def of(cls, parts: list[ContinuationScore]) -> TextScore:
        """The score of a text from those of its pieces."""
        count = sum(len(next(iter(part.log_probs.values()))) for part in parts)
        log_probs = {name: sum(part.total(name) for part in parts) for name in parts[0].log_probs}
        if parts[0].energies is None:
            return cls(log_probs, count)
        return cls(log_probs, count, sum(part.energies.sum().item() for part in parts) / count)


def scorer_by(
    model, by: str | None = None, batch_size: int = 8, think_steps: int | None = None, **energy_options: Any
) -> tuple[ContinuationScorer, str]:
    """The cheapest scorer that knows ``by``, and the name of that column.

    MonArc: ``"elm"`` (the default) finds log Z, ``"energy"`` and ``"lm"`` do not. nanoEBM: ``"s2"`` (the default; also
    ``"elm"``) and ``"s1"`` (also ``"lm"``). Other models: ``"lm"``.

    Args:
        energy_options: ``method``, ``num_samples``, ``exact_top``, ``max_rows``, ``seed`` of `EnergyScorer`.

    Raises:
        ValueError: a name that the model has nothing for; options out of range.
    """
    if hasattr(model, "score_candidates"):
        kind, names = "MonArc", {"elm": "elm", ENERGY: ENERGY, "lm": "lm"}
    elif getattr(model.config, "model_type", None) == "nano_ebm":
        kind, names = "nanoEBM", {"s2": "s2", "s1": "s1", "elm": "s2", "lm": "s1"}
    else:
        kind, names = "plain language", {"lm": "lm"}
    if by is not None and by not in names:
        raise ValueError(f'by must be one of {", ".join(names)} for a {kind} model, got "{by}".')
    column = names[by] if by is not None else next(iter(names.values()))
    if kind == "MonArc" and column == "lm":
        return ContinuationScorer(model.lm, batch_size), column
    if kind == "MonArc" and column == ENERGY:
        return TokenEnergyScorer(model, batch_size), column
    if kind == "MonArc":
        return EnergyScorer(model, batch_size, **energy_options), column
    return scorer_of(model, batch_size, think_steps), column


class TextScorer:
    """Scores of texts after contexts.

    All texts that are compared with each other are scored given the very same tokens: those that the context and the context
    with any of the texts begin with, cut from the left so that the longest text fits beside them. What a tokenizer does where
    context and text meet is thereby part of the text. Only a text that fills the window by itself is read in pieces.

    Args:
        scorer: of the model.
        tokenizer: of the model.
        suffix: scored after every text as its end, e.g. a newline.
        window: tokens that the model sees at once, best the length of the rows that it was trained on
            (`hf_elm.trained_windows.trained_window`); None, or more than its positions: those.

    Attributes:
        prefix: token that stands before texts without a context: the tokenizer's bos, else its eos; None = it has neither.

    Raises:
        ValueError: a window of fewer than 2 tokens.
    """

    def __init__(self, scorer: ContinuationScorer, tokenizer, suffix: str = "", window: int | None = None):
        if window is not None and window < 2:
            raise ValueError(f"window must be at least 2 tokens, got {window}.")
        self.scorer, self.tokenizer, self.suffix = scorer, tokenizer, suffix
        self.window = min((n for n in (window, scorer.positions) if n is not None), default=None)
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.prefix = bos if bos is not None else eos
        self._begins = bos is not None and tokenizer("a", verbose=False)["input_ids"][:1] == [bos]

    def pairs(self, context: str, texts: list[str]) -> list[Pair]:
        """(context, continuation) token ids of each text.

        Raises:
            ValueError: characters that the vocabulary lacks, no text, no context and no token to begin with.
        """
        for text in (context, *texts, self.suffix):
            if unknown := unknown_characters(self.tokenizer, text):
                listed = ", ".join(map(repr, unknown[:10]))
                raise ValueError(f"{_shown(text)} has characters that the model's vocabulary lacks: {listed}.")
        before, wholes = self._ids(context), [self._ids(context + text + self.suffix) for text in texts]
        if not texts or not all(wholes):
            raise ValueError("there must be a text to score, and each must have a token.")
        shared = _common(before, *(whole[:-1] for whole in wholes))
        start = before[:shared]
        if self._begins or not start:
            if self.prefix is None:
                raise ValueError("the tokenizer has neither a bos nor an eos token to begin with; give a context.")
            start = [self.prefix, *start]
        return [(start, whole[shared:]) for whole in wholes]

    def scores(self, groups: Iterable[tuple[str, list[str]]]) -> list[list[TextScore]]:
        """Scores of every text of each (context, texts); rows of like length are run together."""
        whole = [self.pairs(context, texts) for context, texts in groups]
        return [[TextScore.of(parts) for parts in found] for found in self.token_scores(whole)]

    def token_scores(self, groups: list[list[Pair]]) -> list[list[list[ContinuationScore]]]:
        """Of every pair of each group the scores of its pieces: one, unless its text is as long as the window."""
        pieces = [
            (i, j, piece)
            for i, pairs in enumerate(groups)
            for j, pair in enumerate(self._fitting(pairs))
            for piece in continuation_pieces(*pair, self.window)
        ]
        order = sorted(range(len(pieces)), key=lambda k: -sum(map(len, pieces[k][2])))
        found: dict[int, ContinuationScore] = dict(
            zip(order, self.scorer.scores(pieces[k][2] for k in order), strict=True)
        )
        results: list[list[list[ContinuationScore]]] = [[[] for _ in pairs] for pairs in groups]
        for k, (i, j, _) in enumerate(pieces):
            results[i][j].append(found[k])
        return results

    def _fitting(self, pairs: list[Pair]) -> list[Pair]:
        """The pairs with all contexts cut to what the longest text leaves of the window, where it leaves any."""
        room = None if self.window is None else self.window - max((len(text) for _, text in pairs), default=0)
        return pairs if room is None or room < 1 else [(context[-room:], text) for context, text in pairs]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _common(*rows: list[int]) -> int:
    """Length of the beginning that all rows share."""
    count = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        count += 1
    return count


def _shown(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
