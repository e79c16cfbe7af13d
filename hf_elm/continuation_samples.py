"""Several sampled continuations of one prompt, and their log-likelihoods under every distribution that a model holds."""

from __future__ import annotations

from typing import Any

import torch
from transformers import StoppingCriteriaList

from .harness_generation import StopStrings, cut_at
from .sample_choice import Sample
from .text_scores import TextScore, TextScorer


class ContinuationSampler:
    """Draws continuations by ``model.generate``.

    Args:
        stop: texts at which a continuation ends.
        samples_at_once: continuations that are generated side by side; memory against speed. Another number draws others.
        options: of ``generate``, such as ``temperature``, ``top_p``, MonArc's ``num_candidates``, nanoEBM's ``think_steps``.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, model, tokenizer, stop: list[str] | None = None, samples_at_once: int = 32, **options: Any):
        if samples_at_once < 1:
            raise ValueError(f"samples_at_once must be at least 1, got {samples_at_once}.")
        self.model, self.tokenizer, self.stop = model, tokenizer, [text for text in stop or [] if text]
        self.samples_at_once, self.options = samples_at_once, {"do_sample": True} | options
        eos = options.get("eos_token_id", model.generation_config.eos_token_id)
        self.ends = set(eos) if isinstance(eos, list | tuple) else {eos} - {None}

    def draw(self, prompt: list[int], num_samples: int, seed: int = 0) -> list[Sample]:
        """``num_samples`` continuations of the token ids ``prompt``, not scored yet.

        The first one of ``num_samples=1`` is what ``generate`` gives after ``torch.manual_seed(seed)``.

        Raises:
            ValueError: ``num_samples`` below 1.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
        device = self.model.device
        ids = torch.tensor([prompt], device=device)
        samples = []
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for start in range(0, num_samples, self.samples_at_once):
                count = min(self.samples_at_once, num_samples - start)
                stopping = [StopStrings(self.tokenizer, self.stop, len(prompt))] if self.stop else []
                output = self.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    num_return_sequences=count,
                    stopping_criteria=StoppingCriteriaList(stopping),
                    **self.options,
                )
                samples += [self.sample_of(row) for row in output[:, len(prompt) :].tolist()]
        return samples

    def sample_of(self, row: list[int]) -> Sample:
        """The sample that a row of new token ids holds: up to the first one that ends it."""
        length = next((i + 1 for i, token in enumerate(row) if token in self.ends), len(row))
        finished = length < len(row) or (length > 0 and row[length - 1] in self.ends)
        if self.stop and self._stops(row[:length]):
            low, high = 1, length  # the fewest tokens whose text holds a stop
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if self._stops(row[:middle]) else (middle + 1, high)
            length, finished = low, True
        return Sample(cut_at(self._text(row[:length]), self.stop), tuple(row[:length]), finished)

    def _stops(self, ids: list[int]) -> bool:
        text = self._text(ids)
        return any(stop in text for stop in self.stop)

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def score_samples(samples: list[Sample], prompt: list[int], texts: TextScorer) -> list[Sample]:
    """The samples with ``log_probs`` and ``energy`` of ``texts.scorer``; the same tokens are scored once.

    A sample's probability is that of its tokens, with those that ended it, at temperature 1 and whatever else the model was
    sampled with.
    """
    distinct = list(dict.fromkeys(sample.token_ids for sample in samples))
    pairs = [(list(prompt), list(ids)) for ids in distinct if ids]
    scores = iter(texts.token_scores([pairs])[0])
    columns = texts.scorer.columns + (texts.scorer.interval or ())
    found = {ids: TextScore.of(next(scores)) if ids else TextScore(dict.fromkeys(columns, 0.0), 0) for ids in distinct}
    return [
        Sample(
            sample.text,
            sample.token_ids,
            sample.finished,
            found[sample.token_ids].log_probs,
            found[sample.token_ids].energy,
        )
        for sample in samples
    ]
