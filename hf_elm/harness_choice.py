"""Generation for evaluation tasks by choice among samples: best of N, votes and perplexity consistency in ``generate_until``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .continuation_samples import ContinuationSampler, score_samples
from .sample_choice import CHOICES, choose_sample, compiled
from .text_scores import TextScorer


@dataclass(frozen=True)
class ChosenGeneration:
    """How one of several generations is chosen.

    Attributes:
        choose: of `hf_elm.sample_choice.choose_sample`.
        num_samples: generations to choose from.
        answer_pattern: of an answer; None = the whole generation.

    Raises:
        ValueError: an unknown choice, a number below 1, a pattern that is no regular expression.
    """

    choose: str
    num_samples: int = 16
    answer_pattern: str | None = None

    def __post_init__(self):
        if self.choose not in CHOICES:
            raise ValueError(f'choose must be one of {", ".join(CHOICES)}, got "{self.choose}".')
        if self.num_samples < 1:
            raise ValueError(f"choose_from must be at least 1, got {self.num_samples}.")
        if self.answer_pattern is not None:
            compiled(self.answer_pattern)

    def text(
        self, texts: TextScorer, column: str, context: list[int], request: dict[str, Any], seed: int, **fixed: Any
    ) -> str:
        """The chosen generation after ``context``, sampled at the task's temperature or at 1 where the task is greedy.

        Args:
            column: whose probabilities count.
            request: as made by `harness_generation.generation_request`.
            fixed: options of ``generate`` that win, such as ``num_candidates=1``.
        """
        scorer, new_tokens = texts.scorer, request["max_new_tokens"]
        if scorer.positions is not None:  # as in `harness_generation.generate_texts`
            new_tokens = max(1, min(new_tokens, scorer.positions // 2))
            context = context[-(scorer.positions - new_tokens) :]
        options = request["options"] | {"do_sample": True, "max_new_tokens": new_tokens} | fixed
        sampler = ContinuationSampler(scorer.model, texts.tokenizer, request["until"], **options)
        samples = sampler.draw(context, self.num_samples, seed)
        if self.choose != "vote":
            samples = score_samples(samples, context, texts)
        by = column if self.choose in ("likelihood", "consistency") else None
        return choose_sample(samples, self.choose, by, self.answer_pattern).sample.text
