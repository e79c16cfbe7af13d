"""Best-of-N and self-consistency in one call: draw continuations of a prompt, score them, choose one."""

from __future__ import annotations

import sys
from typing import Any

from .continuation import prompt_ids
from .continuation_samples import ContinuationSampler, score_samples
from .model_comparison import load_causal
from .sample_choice import Choice, Sample, answer_of, choose_sample
from .text_scores import ENERGY, TextScorer, scorer_by
from .token_log_probs import max_positions


SHOWN_ANSWERS = 10


def choose_continuation(
    model,
    tokenizer,
    prompt: str,
    *,
    num_samples: int = 16,
    choose: str = "consistency",
    by: str | None = None,
    answer_pattern: str | None = None,
    stop: str | None = None,
    prune: bool = True,
    normalize: str = "none",
    seed: int = 0,
    max_new_tokens: int = 128,
    batch_size: int = 8,
    samples_at_once: int = 32,
    energy_options: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Choice, list[Sample]]:
    """The chosen one of ``num_samples`` continuations of ``prompt``, and all of them.

    Args:
        model: MonArc, nanoEBM or any other causal LM.
        choose, answer_pattern, prune, normalize: of `sample_choice.choose_sample`.
        by: whose probabilities count, of `text_scores.scorer_by`: MonArc's elm (None) or lm, nanoEBM's s2 (None) or s1.
        stop: text at which a continuation ends, such as a newline.
        seed: of the samples; ``num_samples=1`` is plain sampling with it.
        batch_size: samples that are scored together; the choice does not depend on it.
        samples_at_once: samples that are drawn together, see `ContinuationSampler`.
        energy_options: ``method``, ``num_samples``, ``exact_top``, ``max_rows``, ``seed`` of MonArc's log Z.
        options: of ``generate``: ``temperature``, ``top_p``, ``num_candidates``, ``think_steps``, ...

    Raises:
        ValueError: arguments out of range or that do not go together; a prompt that the model cannot take.
    """
    if choose == ENERGY and by not in (None, ENERGY):
        raise ValueError(f'choose="energy" is by energy; leave by="{by}" out, or take choose="likelihood".')
    if options.get("do_sample") is False:
        raise ValueError("do_sample=False draws the same continuation again and again; leave it out.")
    answer_of("", answer_pattern)
    think_steps = options.get("think_steps")
    scorer, column = scorer_by(
        model, ENERGY if choose == ENERGY else by, batch_size, think_steps, **(energy_options or {})
    )
    ids = prompt_ids(prompt, tokenizer, model)[0].tolist()
    positions = max_positions(model)
    new = max_new_tokens if positions is None else min(max_new_tokens, positions - len(ids))
    stops = [stop] if stop else None
    sampler = ContinuationSampler(model, tokenizer, stops, samples_at_once, max_new_tokens=new, **options)
    samples = sampler.draw(ids, num_samples, seed)
    if choose != "vote":
        samples = score_samples(samples, ids, TextScorer(scorer, tokenizer))
    by = column if choose in ("likelihood", "consistency") else None
    return choose_sample(samples, choose, by, answer_pattern, prune=prune, normalize=normalize), samples


def print_chosen(
    checkpoint: str, prompt: str, device: str | None = None, dtype: str | None = None, **settings: Any
) -> Choice:
    """What ``hf-elm generate choose=...`` does: the prompt with the chosen continuation on standard output, how it was chosen on
    standard error.

    Args:
        settings: of `choose_continuation`.
    """
    model, tokenizer = load_causal(checkpoint, device, dtype)
    choice, samples = choose_continuation(model, tokenizer, prompt, **settings)
    sys.stdout.write(f"{prompt}{choice.sample.text}\n")
    sys.stderr.write("".join(f"{line}\n" for line in report(choice, samples, settings["choose"])))
    return choice


def report(choice: Choice, samples: list[Sample], choose: str) -> list[str]:
    """Some lines on how a choice came about."""
    sample, ended = choice.sample, sum(each.finished for each in samples)
    lines = [f"--- {choose}: sample {choice.index + 1} of {len(samples)}, {ended} of which came to an end"]
    known = [f"log p {value:.2f} ({name})" for name, value in sample.log_probs.items()]
    if sample.energy is not None:
        known.append(f"mean energy {sample.energy:+.3f}")
    if known:
        lines.append(f"    {', '.join(known)} nats, {len(sample.token_ids)} tokens")
    if not choice.shares and choose in ("vote", "consistency"):
        lines.append("    no sample has an answer that answer_pattern finds; the likeliest sample is given")
    for answer, share in list(choice.shares.items())[:SHOWN_ANSWERS]:
        lines.append(f"    {share:6.1%}  {answer[:80]!r}")
    if len(choice.shares) > SHOWN_ANSWERS:
        lines.append(f"    and {len(choice.shares) - SHOWN_ANSWERS} more answers")
    left_out = choice.kept.count(False)
    if left_out:
        lines.append(f"    {left_out} samples took no part: unlikely, or without an answer")
    return lines
