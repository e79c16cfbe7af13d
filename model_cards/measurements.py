"""Likelihood and retrieval records as lines of a table: what was measured, on how much, and by which method."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .card_facts import CardFacts


@dataclass(frozen=True)
class Measurement:
    """One number.

    Attributes:
        key: identifier in the model-index.
        label: in words.
        value: in ``unit``.
        standard_error: None where it is not known.
        bits_per_byte: the same likelihood over the text's bytes.
        gain: a difference, which is written with its sign.
        of_another: belongs to something else than this model, for comparison.
    """

    key: str
    label: str
    value: float
    unit: str
    standard_error: float | None = None
    bits_per_byte: float | None = None
    gain: bool = False
    of_another: bool = False


def likelihood_measurements(facts: CardFacts) -> list[Measurement]:
    """The numbers in ``likelihood.json`` that are likelihoods; diagnostics that assume Z = 1 are none."""
    record = facts.likelihood
    read = {"monarc": _of_monarc, "nano_ebm": _of_nano_ebm, "m2_bert": _of_m2_bert}.get(facts.family)
    return list(read(record)) if read and record else []


def _line(record, key, label, bits=None, unit="nats/token", gain=False) -> Iterator[Measurement]:
    value = record.get(key)
    if isinstance(value, (int, float)):
        error = record.get(f"{key}_se")
        bits_per_byte = record.get(bits) if bits else None
        others = "unigram" in key or "gpt_nll" in key or key == "equal_compute_lm_nll"
        yield Measurement(key.removeprefix("eval_"), label, value, unit, error, bits_per_byte, gain, others)


def _of_monarc(record: dict[str, Any]) -> Iterator[Measurement]:
    exact = record.get("elm_nll") is not None
    ends = [("", "")] if exact else [("_lower", ", at least"), ("_upper", ", at most")]
    yield from _line(record, "lm_nll", "LM", "lm_bits_per_byte")
    for end, words in ends:
        yield from _line(record, f"elm_nll{end}", f"ELM{words}", f"elm_bits_per_byte{end}")
    if not exact:
        for end, words in ends:
            yield from _line(record, f"certified_elm_nll{end}", f"ELM{words}, certified")
    for end, words in ends:
        yield from _line(record, f"gain{end}", f"gain of the ELM over its LM{words}", gain=True)
    yield from _line(record, "equal_compute_lm_nll", "LM of equal compute")
    for end, words in ends:
        yield from _line(record, f"gain_over_equal_compute{end}", f"gain over that LM{words}", gain=True)


def _of_nano_ebm(record: dict[str, Any]) -> Iterator[Measurement]:
    more = record.get("more_think_steps")
    lines = [
        ("s1_nll", "eval_nll_s1", "S1: before thinking", "s1_bits_per_byte", False),
        ("s2_nll", "eval_nll_s2", f"S2: after {_steps(record)}", "s2_bits_per_byte", False),
        ("s2_more_nll", None, f"S2 after {more} steps", "s2_more_bits_per_byte", False),
        ("thinking_gain", None, "gain of S2 over S1", None, True),
        ("more_thinking_gain", None, f"gain of {more} steps over S2", None, True),
        ("gpt_nll", None, "GPT of as many parameters", "gpt_bits_per_byte", False),
        ("gain_over_gpt", None, "gain of S2 over that GPT", None, True),
        ("equal_compute_gpt_nll", None, "GPT of equal compute", "equal_compute_gpt_bits_per_byte", False),
        ("gain_over_equal_compute", None, "gain of S2 over that GPT", None, True),
    ]
    for key, key_of_a_run, label, bits, gain in lines:
        yield from _line(
            record, key if key in record or key_of_a_run is None else key_of_a_run, label, bits, gain=gain
        )


def _steps(record):
    count = record.get("think_steps") or sum(name.startswith("eval_alpha_") for name in record)
    return f"{count} refinement step{'' if count == 1 else 's'}" if count else "thinking"


def _of_m2_bert(record: dict[str, Any]) -> Iterator[Measurement]:
    prefix = "eval_" if "eval_loss" in record else ""
    if f"{prefix}unigram_entropy" not in record:
        return
    yield from _line(record, f"{prefix}loss", "loss at masked tokens", unit="nats per masked token")
    entropy = "entropy of the masked tokens' frequencies"
    yield from _line(record, f"{prefix}unigram_entropy", entropy, unit="nats per masked token")
    yield from _line(record, f"{prefix}masked_accuracy", "masked tokens predicted right", unit="share")


def likelihood_method(facts: CardFacts) -> list[str]:
    """Sentences: what was counted, and how the number came about."""
    record = facts.likelihood
    if not likelihood_measurements(facts):
        return []
    sentences = []
    tokens, documents = record.get("num_tokens"), record.get("num_documents")
    where = f" of {facts.corpus_name}, held out from training" if facts.corpus_name else ""
    masked = record.get("eval_masked_tokens", record.get("masked_tokens"))
    if tokens:
        of = f" in {documents:,} documents" if documents else ""
        sentences.append(f"Counted: {tokens:,} tokens{of}{where}.")
    elif masked:
        sentences.append(f"Counted: {masked:,} masked tokens{where}.")
    elif where:
        sentences.append(f"Counted: text{where}.")
    if facts.family == "monarc" and (method := _log_z_method(record)):
        sentences.append(method)
    if any(each.standard_error is not None for each in likelihood_measurements(facts)):
        sentences.append("Standard errors take documents as independent; they cover the data, not the training.")
    if facts.family == "nano_ebm":
        sentences.append("A refined prediction is a distribution like any other: these likelihoods are exact.")
    return sentences


def _log_z_method(record):
    top, samples, size = record.get("exact_top"), record.get("num_samples"), record.get("vocab_size")
    return {
        "exact": f"Method: exact, log Z is a sum over all {size:,} tokens of the vocabulary." if size else None,
        "sampled": f"Method: sampled, log Z is bounded from both sides with the {top:,} likeliest tokens summed exactly and "
        f"K = {samples:,} samples from the rest; each end of the interval holds in expectation at every K."
        if top is not None and samples
        else None,
        "certified": f"Method: certified, log Z is bounded by the {top:,} likeliest tokens and the bound on the energies; the "
        "interval holds without sampling."
        if top is not None
        else None,
    }.get(record.get("method"))
