"""What a MonArc model says of every token of a text: log p under its LM and under the energy-based model, E and log Z; nats."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..continuation import prompt_ids
from ..continuation_scores import EnergyScorer
from ..counted_bytes import TokenBytes
from ..document_scores import windows
from ..evaluation_rows import row_batches
from ..plots.prompt_refinement import token_labels
from .request_limits import MAX_PROMPT, MAX_SCORED_TOKENS, checked_text
from .shared_model import SharedModel


@dataclass
class TokenScores:
    """Scores of the tokens of a text; all tensors float64 ``(tokens,)`` on the CPU, nats.

    The first token has nothing before it: it is shown and not scored, and its entries are 0.

    Attributes:
        labels: the tokens.
        lm: log p_LM of each token.
        energies: E of each token.
        elm_lower, elm_upper: ends of log p_LM - E - log Z; equal where Z was summed over the vocabulary.
        num_bytes: UTF-8 bytes of the scored tokens' text.
        method: how log Z was found: "exact" or "sampled".
        window: tokens that the model saw at once, where the text is longer; else None.
    """

    labels: list[str]
    lm: Tensor
    energies: Tensor
    elm_lower: Tensor
    elm_upper: Tensor
    num_bytes: int
    method: str
    window: int | None = None

    @property
    def num_scored(self) -> int:
        return len(self.labels) - 1

    @property
    def is_exact(self) -> bool:
        return self.method == "exact"

    @property
    def gain(self) -> Tensor:
        """log p_ELM - log p_LM of each token, by the middle of the interval; positive = likelier by its energy."""
        return (self.elm_lower + self.elm_upper) / 2 - self.lm

    @property
    def log_z(self) -> Tensor:
        """log Z before each token, by the middle of its interval."""
        return self.lm - self.energies - (self.elm_lower + self.elm_upper) / 2

    def nll(self, column: str) -> float:
        """Mean over the scored tokens of -log p, nats/token; ``column``: lm, elm_lower or elm_upper (ends of log p)."""
        return -getattr(self, column).sum().item() / self.num_scored

    def bits_per_byte(self, column: str) -> float:
        """The same total in bits per byte of the scored text."""
        return self.nll(column) * self.num_scored / math.log(2) / self.num_bytes


@torch.no_grad()
def score_text(shared: SharedModel, text: str, window: int | None = None, **energy_options) -> TokenScores:
    """Scores of ``text``, every token given those before it, as far as the window reaches.

    Args:
        shared: of a `MonArcForCausalLM`.
        window: tokens that the model sees at once, for a saved model those that it was trained on
            (`hf_elm.trained_windows.trained_window`); a longer text is read in windows that overlap by half. None = no limit.
        energy_options: of `hf_elm.continuation_scores.EnergyScorer`, e.g. ``num_samples``; by default log Z is exact up to a
            vocabulary of 512 tokens and otherwise an interval from 64 likeliest tokens and 64 samples.

    Raises:
        ValueError: a text of fewer than 2 tokens, of too many, or with characters that the tokenizer lacks.
    """
    model, tokenizer = shared.model, shared.tokenizer
    input_ids = prompt_ids(checked_text("text", text, MAX_PROMPT), tokenizer, model).to(shared.device)
    ids = input_ids[0].tolist()
    if not 2 <= len(ids) <= MAX_SCORED_TOKENS:
        raise ValueError(f"text has {len(ids):,} tokens; from 2 to {MAX_SCORED_TOKENS:,} are scored here.")
    scorer = EnergyScorer(model, batch_size=1, **energy_options)
    with shared.lock:
        scores = list(scorer.scores(windows(ids, window)))
    lower, upper = scorer.interval or ("elm", "elm")
    first = torch.zeros(1, dtype=torch.float64)
    columns = {name: torch.cat([first, *(score.log_probs[name] for score in scores)]) for name in scores[0].log_probs}
    return TokenScores(
        labels=token_labels(tokenizer, ids),
        lm=columns["lm"],
        energies=torch.cat([first, *(score.energies for score in scores)]),
        elm_lower=columns[lower],
        elm_upper=columns[upper],
        num_bytes=_bytes(tokenizer, ids, scorer.settings.vocab_size),
        method=scorer.settings.method,
        window=window if window is not None and len(ids) > window else None,
    )


def _bytes(tokenizer, ids, vocab_size):
    """UTF-8 bytes of all tokens but the first."""
    (batch,) = row_batches([{"input_ids": ids}], 1, None, vocab_size)
    batch.counted[:, 0] = False
    return max(1, round(TokenBytes.of(tokenizer, None, vocab_size)(batch).sum().item()))
