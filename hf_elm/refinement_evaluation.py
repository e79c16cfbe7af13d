"""Likelihood of a nanoEBM before and after thinking, beside plain language models, on the very same tokens.

A refined prediction is a distribution like any other, so that every number is an exact likelihood. Units: nats per token;
standard errors by document, of differences too, which are paired by token.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .counted_bytes import TokenBytes
from .document_totals import DocumentTotals, ratio_estimate
from .evaluation_rows import RowBatch, in_random_order, leave_out_unknown, row_batches, unknown_token_id
from .modeling.nano_ebm.refinement_loss import next_token_targets
from .refinement_likelihood import RefinementLikelihood
from .token_log_probs import evaluation_mode, token_log_probs, vocabulary_size


__all__ = ["RefinementLikelihood", "evaluate_refinement"]

MORE_STEPS = 8
GAINS = {  # name -> (worse where positive, better where positive)
    "thinking_gain": ("s1_nll", "s2_nll"),
    "more_thinking_gain": ("s2_nll", "s2_more_nll"),
    "gain_over_gpt": ("gpt_nll", "s2_nll"),
    "gain_over_equal_compute": ("equal_compute_gpt_nll", "s2_nll"),
}


@torch.no_grad()
def evaluate_refinement(
    model,
    data: Iterable[Mapping],
    *,
    gpt=None,
    equal_compute_gpt=None,
    more_think_steps: int = MORE_STEPS,
    max_tokens: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    tokenizer=None,
) -> RefinementLikelihood:
    """NLL of system 1, of system 2 after the configured and after more steps, and of other language models, nats/token.

    Counted are the tokens that training counts: all but padding and the first token of each document and row.

    Args:
        model: a `NanoEBMForRefinement` that thinks.
        data: rows as made by `hf_elm.trainers.packing`.
        gpt, equal_compute_gpt: other causal LMs over the same vocabulary.
        max_tokens: stop after so many counted tokens, None = all. Rows that can be indexed are then taken in a random order of
            ``seed``, so that the tokens come from many documents.
        tokenizer: for bits/byte, over the UTF-8 bytes that the counted tokens decode to. Its unknown token is not counted.

    Raises:
        TypeError: another kind of model, rows that are no dicts of integer sequences.
        ValueError: a model without thinking, an argument out of range, rows that a model cannot take, nothing counted.
    """
    _check(model, {"more_think_steps": more_think_steps, "max_tokens": max_tokens, "batch_size": batch_size})
    others = {"gpt": gpt, "equal_compute_gpt": equal_compute_gpt}
    models = {name: each for name, each in {"nano_ebm": model, **others}.items() if each is not None}
    token_bytes = TokenBytes.of(tokenizer, None, vocabulary_size(model))
    totals, num_rows, num_unknown = DocumentTotals(), 0, 0
    if max_tokens is not None:
        data = in_random_order(data, seed)
    with contextlib.ExitStack() as stack:
        for each in models.values():
            stack.enter_context(evaluation_mode(each))
        for batch in row_batches(data, batch_size, model.max_positions(), vocabulary_size(model)):
            num_rows += len(batch.input_ids)
            num_unknown += leave_out_unknown(batch, unknown_token_id(tokenizer))
            _count_what_training_counts(batch, None if max_tokens is None else max_tokens - totals.num_tokens)
            if batch.counted.any():
                columns = _columns(models, batch, more_think_steps)
                columns |= {} if token_bytes is None else {"bytes": token_bytes(batch)}
                totals.add(batch.documents[batch.counted], columns)
            if max_tokens is not None and totals.num_tokens >= max_tokens:
                break
    if not totals.num_tokens:
        raise ValueError("data has no counted tokens: every row is shorter than 2 tokens or is padding.")
    settings = {
        "more_think_steps": more_think_steps,
        "seed": seed,
        "num_rows": num_rows,
        "num_unknown_tokens": num_unknown,
    }
    return _result(totals, models, settings)


def trainable_parameters(model) -> int:
    """Parameters that training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _check(model, counts):
    if getattr(getattr(model, "config", None), "model_type", None) != "nano_ebm":
        raise TypeError(f"model must be a NanoEBMForRefinement, got {type(model).__name__}.")
    if not (model.config.use_thinking and model.config.think_steps):
        raise ValueError(
            f"model does not think (use_thinking={model.config.use_thinking}, think_steps={model.config.think_steps}), so that "
            "there is no system 2 to compare; set both in its config."
        )
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")


def _count_what_training_counts(batch: RowBatch, room: int | None) -> None:
    """Narrows ``batch.counted`` to tokens with a predecessor in their document, at most ``room`` of them."""
    labels = batch.input_ids.masked_fill(~batch.counted, -100)
    targets = next_token_targets(labels, batch.attention_mask, batch.segment_ids)
    batch.counted = F.pad(targets[:, :-1] != -100, (1, 0))
    if room is not None:
        batch.counted &= (batch.counted.flatten().cumsum(0) <= room).view_as(batch.counted)


def _columns(models, batch, more_think_steps) -> dict[str, Tensor]:
    """NLL of each counted token under each model, float64 ``(counted,)``."""
    model = models["nano_ebm"]
    steps = model.config.think_steps
    trajectory = model(
        **batch.model_inputs(model.device),
        think_steps=max(steps, more_think_steps),
        output_trajectory=True,
        output_energies=False,
    ).trajectory
    places = {"s1_nll": 0, "s2_nll": steps, "s2_more_nll": more_think_steps}
    columns = {name: _nll(trajectory[place], batch) for name, place in places.items()}
    for name in models.keys() - {"nano_ebm"}:
        columns[f"{name}_nll"] = -token_log_probs(models[name], batch).cpu().double()[batch.counted]
    for name, values in columns.items():
        if not torch.isfinite(values).all():
            last = batch.first_row + len(batch.input_ids) - 1
            raise ValueError(
                f"{name} is not finite somewhere in rows {batch.first_row} to {last}; the model has diverged."
            )
    return columns


def _nll(logits: Tensor, batch: RowBatch) -> Tensor:
    """-log softmax of ``logits`` ``(batch, seq, vocab)`` at the tokens that follow, ``(counted,)``."""
    log_probs = logits.cpu().double().log_softmax(-1)
    following = batch.input_ids[:, 1:].unsqueeze(-1)
    nll = -log_probs[:, :-1].gather(-1, following).squeeze(-1)
    return nll[batch.counted[:, 1:]]


def _result(totals: DocumentTotals, models, settings) -> RefinementLikelihood:
    counts, sums = totals.totals()
    num_bytes = sums.pop("bytes", None)
    gains = {name: sums[worse] - sums[better] for name, (worse, better) in GAINS.items() if worse in sums}
    bits = (
        {}
        if num_bytes is None
        else {name: ratio_estimate(each / math.log(2), num_bytes) for name, each in sums.items()}
    )
    config = models["nano_ebm"].config
    return RefinementLikelihood(
        num_tokens=totals.num_tokens,
        num_documents=len(counts),
        num_bytes=None if num_bytes is None else round(num_bytes.sum().item()),
        vocab_size=vocabulary_size(models["nano_ebm"]),
        think_steps=config.think_steps,
        estimates={name: ratio_estimate(each, counts) for name, each in (sums | gains).items()},
        bits_per_byte=bits,
        parameters={name: trainable_parameters(each) for name, each in models.items()},
        **settings,
    )
