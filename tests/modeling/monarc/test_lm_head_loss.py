"""The chunked head pass against the plain computation: loss, gradients, samples, and the memory that it must not take."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from hf_elm.modeling.monarc.lm_head_loss import lm_head_pass


ROWS, HIDDEN, VOCAB = 10, 6, 300


class WrappedHead(nn.Module):
    """A head that is no plain `nn.Linear`, as PEFT's or a quantised one."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, torch.Tensor)}
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in known:  # not a view
                self.elements = max(self.elements, tensor.numel())
        return out


def problem(bias=True, dtype=torch.float64, rows=ROWS, vocab=VOCAB, seed=0):
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(HIDDEN, vocab, bias=bias).to(dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    hidden = torch.randn(rows, HIDDEN, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(0, vocab, (rows,), generator=generator)
    weights = torch.rand(rows, generator=generator, dtype=torch.float64).to(dtype)
    weights[1::3] = 0.0
    return head, hidden, targets, weights


def collect(head, hidden, loss):
    return torch.autograd.grad(loss, [hidden, *head.parameters()])


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 3, 128])
def test_loss_and_gradients_equal_the_plain_ones(chunk_size, bias, wrapped):
    head, hidden, targets, weights = problem(bias)
    candidates = torch.randint(0, VOCAB, (ROWS, 4), generator=torch.Generator().manual_seed(1))
    log_probs = F.log_softmax(head(hidden), -1)
    expected = -(log_probs.gather(1, targets[:, None])[:, 0] * weights).sum()
    out = lm_head_pass(
        WrappedHead(head) if wrapped else head, hidden, targets, weights, candidates, chunk_size=chunk_size
    )
    assert_close(out.loss, expected, atol=1e-12, rtol=1e-12)
    assert_close(out.target_log_probs, log_probs.gather(1, targets[:, None])[:, 0].detach(), atol=1e-12, rtol=0)
    assert_close(out.candidate_log_probs, log_probs.gather(1, candidates).detach(), atol=1e-12, rtol=0)
    assert torch.equal(out.candidates, candidates)
    # the factor 0.7 stands for what follows the loss: gradients made in the forward pass must still be scaled
    for ours, plain in zip(collect(head, hidden, out.loss * 0.7), collect(head, hidden, expected * 0.7), strict=True):
        assert_close(ours, plain, atol=1e-12, rtol=1e-12)


def test_a_frozen_head_or_trunk_gets_no_gradient():
    head, hidden, targets, weights = problem()
    head.requires_grad_(False)
    lm_head_pass(head, hidden, targets, weights).loss.backward()
    assert hidden.grad is not None
    assert head.weight.grad is None
    head, hidden, targets, weights = problem()
    lm_head_pass(head, hidden.detach(), targets, weights).loss.backward()
    assert head.weight.grad is not None


@pytest.mark.parametrize("wrapped", [False, True])
def test_without_gradients_none_are_computed(wrapped):
    """Evaluation must not pay for them: no tensor of the weight's size is made."""
    head, hidden, targets, weights = problem(vocab=1000)
    run = WrappedHead(head) if wrapped else head
    with torch.no_grad(), LargestTensor() as made:
        out = lm_head_pass(run, hidden, targets, weights, None, 2, chunk_size=2)
    assert made.elements < HIDDEN * 1000
    assert not out.loss.requires_grad


def test_low_precision_keeps_the_sums_in_float32():
    head, hidden, targets, weights = problem(dtype=torch.bfloat16)
    exact = -(F.log_softmax(head(hidden).double(), -1).gather(1, targets[:, None])[:, 0] * weights.double()).sum()
    out = lm_head_pass(head, hidden, targets, weights.float())
    assert out.loss.dtype == out.target_log_probs.dtype == torch.float32
    assert_close(out.loss.double(), exact, atol=1e-5, rtol=1e-5)  # the logits are the same bfloat16 numbers


@pytest.mark.parametrize("samples", [0, 2])
def test_no_rows_are_a_zero_loss(samples):
    head, hidden, targets, weights = problem(rows=0)
    out = lm_head_pass(head, hidden, targets, weights, None, samples)
    assert out.loss == 0
    assert out.candidates.shape == out.candidate_log_probs.shape == (0, samples)


@pytest.mark.parametrize("wrapped", [False, True])
def test_no_tensor_of_all_rows_times_vocabulary_is_made(wrapped):
    rows, vocab, chunk = 200, 500, 8
    head, hidden, targets, weights = problem(rows=rows, vocab=vocab)
    with LargestTensor() as made:
        loss = lm_head_pass(
            WrappedHead(head) if wrapped else head, hidden, targets, weights, None, 3, chunk_size=chunk
        ).loss
        loss.backward()
    # the largest are a chunk of logits and the blocks of 256 that the samples fall in, not 200 x 500
    assert made.elements <= chunk * max(vocab, 3 * 256)


def test_samples_follow_the_distribution_of_their_row():
    """Pearson's statistic over 40,000 draws of each of three rows; its mean is the degrees of freedom, its variance twice that."""
    head, hidden, targets, weights = problem(rows=3)
    draws = 40_000
    generator = torch.Generator().manual_seed(2)
    out = lm_head_pass(head, hidden, targets, weights, None, draws, generator, chunk_size=2)
    p = torch.softmax(head(hidden), -1).detach()
    counts = torch.zeros_like(p).scatter_add_(1, out.candidates, torch.ones_like(out.candidates, dtype=p.dtype))
    for row in range(3):
        common = p[row] * draws >= 5  # the usual rule; the rare tokens are pooled
        expected = torch.cat([p[row][common], p[row][~common].sum(0, keepdim=True)]) * draws
        observed = torch.cat([counts[row][common], counts[row][~common].sum(0, keepdim=True)])
        statistic = ((observed - expected) ** 2 / expected).sum()
        freedom = len(expected) - 1
        assert abs(statistic - freedom) <= 4 * (2 * freedom) ** 0.5
    assert_close(out.candidate_log_probs, p.log().gather(1, out.candidates), atol=1e-10, rtol=0)


def test_impossible_tokens_are_never_drawn_and_generators_repeat():
    head, hidden, targets, weights = problem(rows=4)
    with torch.no_grad():
        head.bias[:200] = -torch.inf
        head.bias[299] = -torch.inf
    targets = targets.clamp(min=200, max=298)
    first, second = (
        lm_head_pass(head, hidden, targets, weights, None, 500, torch.Generator().manual_seed(0)).candidates
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert first.min() >= 200
    assert first.max() < 299
    other = lm_head_pass(head, hidden, targets, weights, None, 500, torch.Generator().manual_seed(1)).candidates
    assert not torch.equal(first, other)
