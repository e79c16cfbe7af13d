"""Log-probabilities that any causal language model gives to the tokens of packed rows."""

from __future__ import annotations

import contextlib
import inspect

import torch
from torch import Tensor

from .evaluation_rows import RowBatch, document_slices


def token_log_probs(model, batch: RowBatch, max_rows: int = 64) -> Tensor:
    """log p(x_t | tokens of the same document before t), ``(batch, seq)``, for any causal LM; nats.

    A MonArc model (anything with ``score_candidates``) is asked for its LM's log-probabilities. A plain LM knows nothing of
    packing, so documents are cut out of their rows and run side by side, at the positions that they had. The first token of
    a document that follows another one is scored from that one's last state, as MonArc does; column 0 is 0.

    Raises:
        ValueError: token ids outside the model's vocabulary, rows longer than its positions, a MonArc model that leaves out
            tokens that are counted.
    """
    _check_fits(model, batch)
    device = next(model.parameters()).device
    if hasattr(model, "score_candidates"):
        inputs = batch.model_inputs(device)
        scores = model.score_candidates(candidates=inputs["input_ids"].unsqueeze(1), max_rows=max_rows, **inputs)
        if (batch.counted & ~scores.target_mask.cpu()).any():
            raise ValueError(
                "equal_compute_lm leaves out first tokens of documents that are counted here; "
                "set its config.mask_segment_starts to False, or pass its inner LM (equal_compute_lm.lm)."
            )
        return scores.token_log_probs
    slices = document_slices(batch)
    log_probs = torch.zeros(batch.input_ids.shape, dtype=torch.float64)
    room = batch.input_ids.numel()  # tokens of one forward pass, padding included
    while slices:
        longest, taken = 0, []
        while slices and max(longest, slices[0][2] - slices[0][1]) * (len(taken) + 1) <= room:
            taken.append(slices.pop(0))
            longest = max(longest, taken[-1][2] - taken[-1][1])
        _score_documents(model, batch, taken, log_probs, device)
    return log_probs


def vocabulary_size(model) -> int:
    """Rows of the model's output embedding, or what its configuration says."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return head.weight.shape[0] if head is not None else _text_config(model).vocab_size


def max_positions(model) -> int | None:
    """Longest row that the model takes, None when its configuration does not say."""
    return getattr(_text_config(model), "max_position_embeddings", None)


def _text_config(model):
    config = model.config
    return getattr(config, "text_config", None) or config


def _check_fits(model, batch):
    name, longest, largest = type(model).__name__, batch.input_ids.shape[1], int(batch.input_ids.max())
    if largest >= vocabulary_size(model):
        raise ValueError(
            f"equal_compute_lm ({name}) has a vocabulary of {vocabulary_size(model)}, but the data holds token {largest}: "
            "both models must share one tokenizer."
        )
    if (limit := max_positions(model)) is not None and longest > limit:
        raise ValueError(
            f"equal_compute_lm ({name}) has {limit} positions, but rows have {longest} tokens: pack shorter rows."
        )


def _score_documents(model, batch, slices, log_probs, device):
    """Runs documents side by side, padded on the right, and writes log-probabilities of the tokens after each state."""
    longest = max(end - start for _, start, end in slices)
    positions = batch.position_ids
    if positions is None:
        token = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
        positions = (token.cumsum(-1) - 1).clamp(min=0)
    ids, mask, places = (torch.zeros(len(slices), longest, dtype=torch.long) for _ in range(3))
    for i, (row, start, end) in enumerate(slices):
        ids[i, : end - start] = batch.input_ids[row, start:end]
        places[i, : end - start] = positions[row, start:end]
        mask[i, : end - start] = 1
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device), "use_cache": False}
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = places.to(device)
    logits = model(**inputs).logits
    for i, (row, start, end) in enumerate(slices):
        following = batch.input_ids[row, start + 1 : end + 1].to(
            device
        )  # of the row: the next document's first included
        scores = logits[i, : len(following)].float() if logits.dtype != torch.float64 else logits[i, : len(following)]
        chosen = scores.gather(-1, following.unsqueeze(-1)).squeeze(-1) - torch.logsumexp(scores, -1)
        log_probs[row, start + 1 : start + 1 + len(following)] = chosen.double().cpu()


@contextlib.contextmanager
def evaluation_mode(model):
    """Dropout off; every module's mode is put back."""
    modes = [(module, module.training) for module in model.modules()] if model is not None else []
    if model is not None:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
