"""Block-diagonal layers against the dense matrix, padded sizes included, and the gated GELU that recomputes itself."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from hf_elm.modeling.m2_bert.block_diagonal import BlockDiagonalLinear, gated_gelu


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("inputs", "outputs", "blocks"), [(8, 12, 4), (60, 200, 8), (100, 60, 8), (5, 7, 1), (5, 7, 3)]
)
def test_equals_the_dense_matrix(inputs, outputs, blocks, bias):
    torch.manual_seed(0)
    layer = BlockDiagonalLinear(inputs, outputs, blocks, bias).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    dense = torch.block_diag(*layer.weight)[:outputs, :inputs]
    x = torch.randn(inputs, 11, dtype=torch.float64, requires_grad=True)
    expected = dense @ x + (layer.bias[:, None] if bias else 0.0)
    found = layer(x)
    assert_close(found, expected, atol=1e-12, rtol=1e-12)
    grad = torch.randn_like(found)
    given = (x, *layer.parameters())
    for a, b in zip(torch.autograd.grad(found, given, grad), torch.autograd.grad(expected, given, grad), strict=True):
        assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_gated_gelu_and_its_gradient():
    x = torch.randn(10, 7, dtype=torch.float64, requires_grad=True)
    a, b = x.chunk(2)
    expected = F.gelu(a) * b
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        found = gated_gelu(x)
    assert [tuple(t.shape) for t in saved] == [(10, 7)]
    assert_close(found, expected)
    grad = torch.randn_like(found)
    assert_close(torch.autograd.grad(found, x, grad), torch.autograd.grad(expected, x, grad))
    with torch.no_grad():
        assert_close(gated_gelu(x), expected)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_of_the_gate_and_its_gradient(rate):
    torch.manual_seed(0)
    x = torch.randn(2 * 101, 97, dtype=torch.float64, requires_grad=True)
    y = gated_gelu(x, rate)
    plain = gated_gelu(x)
    kept = y != 0
    sigma = (rate * (1 - rate) / kept.numel()) ** 0.5
    assert abs(kept.double().mean() - (1 - rate)) < 4 * sigma
    rounded = round(rate * 2**16) / 2**16
    assert_close(y, plain * kept / (1 - rounded), atol=0, rtol=1e-14)
    found, expected = (torch.autograd.grad(z.square().sum(), x)[0] for z in (y, plain * kept / (1 - rounded)))
    assert_close(found, expected, atol=1e-13, rtol=1e-13)
    assert not torch.equal(kept, gated_gelu(x, rate) != 0)
