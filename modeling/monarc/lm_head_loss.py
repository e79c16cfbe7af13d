"""LM head, cross-entropy and negative sampling in one pass over chunks of rows: no ``(batch * seq, vocab)`` tensor.

Each chunk's logits serve the log-likelihood of the target, the log-probabilities of candidates, the sampling of negatives
(from the same exponentials) and, in training, the gradients of hidden states and head weights, which are computed at once and
only scaled in the backward pass.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .candidate_sampling import sample_two_level


@dataclass
class LMHeadOutput:
    """Result of `lm_head_pass`.

    Attributes:
        loss: sum over rows of ``row_weights * -log p(target)``, scalar, nats; the only differentiable field.
        target_log_probs: ``(rows,)``, nats.
        candidates: the given ones or those sampled from p, ``(rows, candidates)``.
        candidate_log_probs: ``(rows, candidates)``, nats.
    """

    loss: Tensor
    target_log_probs: Tensor
    candidates: Tensor
    candidate_log_probs: Tensor


@torch.compiler.disable  # a loop over chunks with its own backward: a graph break is what it needs
def lm_head_pass(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    row_weights: Tensor,
    candidates: Tensor | None = None,
    num_samples: int = 0,
    generator: torch.Generator | None = None,
    chunk_size: int = 128,
) -> LMHeadOutput:
    """Weighted cross-entropy, candidate log-probabilities and samples of p = softmax(head(hidden)), chunk by chunk.

    Args:
        head: the output embedding. A plain `nn.Linear` takes the fused path; any other module (a LoRA or quantised head) is
            called chunk by chunk and recomputed in the backward pass.
        hidden: inputs of the head, ``(rows, hidden)``.
        targets: ``(rows,)``.
        row_weights: factor of each row's loss, ``(rows,)``; 0 ignores the row.
        candidates: tokens whose log-probability is wanted, ``(rows, candidates)``; None = sample ``num_samples`` from p.
        chunk_size: rows per chunk; peak memory is about ``3 * chunk_size * vocab`` floats.
    """
    if candidates is None and num_samples == 0:
        candidates = targets.new_empty(targets.shape[0], 0)
    if type(head) is nn.Linear:
        weight, bias = head.weight, head.bias
        if not torch.is_grad_enabled():  # gradients are computed where inputs require them, whatever the grad mode
            hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        outputs = _FusedHeadLoss.apply(
            hidden, weight, bias, targets, row_weights, candidates, num_samples, generator, chunk_size
        )
        return LMHeadOutput(*outputs)
    return _module_head_pass(head, hidden, targets, row_weights, candidates, num_samples, generator, chunk_size)


class _FusedHeadLoss(torch.autograd.Function):
    """With P = softmax(H W' + b), w the row weights: dH = w (P - onehot) W, dW = (w (P - onehot))' H, db its column sums."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, row_weights, candidates, num_samples, generator, chunk_size):
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        grad_bias = torch.zeros_like(bias) if wants_bias else None
        parts = []
        for rows in _chunks(hidden.shape[0], chunk_size):
            logits = F.linear(hidden[rows], weight, bias)  # the head's own rounding in low precision
            part, exps, total = _score_chunk(logits, targets[rows], _rows(candidates, rows), num_samples, generator)
            parts.append(part)
            if not (wants_hidden or wants_weight or wants_bias):
                continue
            scale = row_weights[rows].unsqueeze(-1).to(exps.dtype)
            grad = exps.mul_(scale / total).scatter_add_(1, targets[rows].unsqueeze(-1), -scale).to(hidden.dtype)
            if wants_hidden:
                torch.mm(grad, weight, out=grad_hidden[rows])
            if wants_weight:
                grad_weight.addmm_(grad.t(), hidden[rows])
            if wants_bias:
                grad_bias += grad.sum(0)
        target_log_probs, drawn, candidate_log_probs = (torch.cat(column) for column in zip(*parts, strict=True))
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.mark_non_differentiable(target_log_probs, drawn, candidate_log_probs)
        return -(target_log_probs * row_weights).sum(), target_log_probs, drawn, candidate_log_probs

    @staticmethod
    def backward(ctx, grad_loss, *_):
        grads = ctx.saved_tensors
        if grad_loss.device.type != "cpu" or grad_loss != 1:  # off the CPU the comparison would wait for the device
            grads = [None if g is None else g * grad_loss.to(g.dtype) for g in grads]
        return *grads, None, None, None, None, None, None


def _module_head_pass(head, hidden, targets, row_weights, candidates, num_samples, generator, chunk_size):
    """The same for a head that is not a plain `nn.Linear`: its logits are recomputed per chunk in the backward pass."""

    def weighted_nll(hidden_chunk, target, weight):
        logits = head(hidden_chunk)
        logits = logits.to(accumulation_dtype(logits.dtype))
        return -(torch.log_softmax(logits, -1).gather(1, target.unsqueeze(-1)).squeeze(-1) * weight).sum()

    loss, parts = row_weights.sum() * 0.0, []
    for rows in _chunks(hidden.shape[0], chunk_size):
        if torch.is_grad_enabled():
            loss = loss + checkpoint(weighted_nll, hidden[rows], targets[rows], row_weights[rows], use_reentrant=False)
        with torch.no_grad():
            part, _, _ = _score_chunk(
                head(hidden[rows]), targets[rows], _rows(candidates, rows), num_samples, generator
            )
        parts.append(part)
    target_log_probs, drawn, candidate_log_probs = (torch.cat(column) for column in zip(*parts, strict=True))
    if not torch.is_grad_enabled():
        loss = -(target_log_probs * row_weights).sum()
    return LMHeadOutput(loss, target_log_probs, drawn, candidate_log_probs)


def _score_chunk(logits, targets, candidates, num_samples, generator):
    """(target log-probs, candidates, their log-probs), exp(logits - max) and its row sums; ``logits`` may be overwritten."""
    logits = logits.to(accumulation_dtype(logits.dtype))
    logits = logits.sub_(logits.amax(-1, keepdim=True))
    target = logits.gather(1, targets.unsqueeze(-1))
    given = None if candidates is None else logits.gather(1, candidates)
    exps = logits.exp_()
    total = exps.sum(-1, keepdim=True)
    log_total = total.log()
    if candidates is None:
        candidates = sample_two_level(exps, num_samples, generator)
        given = exps.gather(1, candidates).log()
    return ((target - log_total).squeeze(1), candidates, given - log_total), exps, total


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums over tokens are kept in: float64 for a float64 model, float32 for every other."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _chunks(rows, size):
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)] or [slice(0, 0)]


def _rows(x, rows):
    return None if x is None else x[rows]
