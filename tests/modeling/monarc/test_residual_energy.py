"""Energy heads and losses: zero at the start, bounds that bound, gradients where learning needs them."""

import math

import pytest
import torch
from torch.testing import assert_close

from hf_elm.modeling.monarc.residual_energy import (
    ENERGY_LOSSES,
    BilinearEnergyHead,
    LinearEnergyHead,
    clamp_energy,
    energy_loss_terms,
)


HIDDEN = 8


def states(*shape, seed=0):
    return torch.randn(*shape, HIDDEN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_bilinear_energy_is_its_formula():
    torch.manual_seed(0)
    head = BilinearEnergyHead(HIDDEN).double()
    previous, token, log_probs = states(2, 1, 5), states(2, 3, 5, seed=1), -states(2, 3, 5, seed=2)[..., 0].abs()
    left = head.norm(previous) @ head.previous_proj.weight.T + head.previous_proj.bias
    right = head.norm(token) @ head.token_proj.weight.T + head.token_proj.bias
    left = left + log_probs[..., None] * head.previous_log_prob.weight[:, 0]
    right = right + log_probs[..., None] * head.token_log_prob.weight[:, 0]
    expected = torch.einsum("bkth,bkth->bkt", left, right) / math.sqrt(HIDDEN)
    assert_close(head(previous, token, log_probs), expected, atol=1e-12, rtol=0)


def test_log_probabilities_are_features_not_a_way_to_the_lm():
    log_probs = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    head = BilinearEnergyHead(HIDDEN).double()
    head(states(2, 1, 5), states(2, 3, 5), log_probs).sum().backward()
    assert log_probs.grad is None
    assert head.token_log_prob.weight.grad is not None
    assert BilinearEnergyHead(HIDDEN, log_prob_features=False).token_log_prob is None


@pytest.mark.parametrize("head", [BilinearEnergyHead, LinearEnergyHead])
def test_energies_of_a_low_precision_head_are_float32(head):
    energies = head(HIDDEN).bfloat16()(states(2, 1, 5), states(2, 3, 5), torch.zeros(2, 3, 5))
    assert energies.dtype == torch.float32
    assert energies.shape == (2, 3, 5)


def test_the_clamp_bounds_and_keeps_small_energies():
    energies = torch.linspace(-100, 100, 201, dtype=torch.float64)
    assert clamp_energy(energies, None) is energies
    clamped = clamp_energy(energies, 3.0)
    assert clamped.abs().max() <= 3.0
    assert (clamped.diff() >= 0).all()
    assert_close(clamp_energy(energies * 1e-4, 3.0), energies * 1e-4, atol=1e-7, rtol=0)


@pytest.mark.parametrize("scale", [0.0, 0.3, 2.0])
def test_the_expected_direct_loss_bounds_the_exact_nll(scale):
    """On a vocabulary of five, Z is a sum: NLL_LM + E + E[exp(-E')] - 1 >= the exact NLL, with equality where Z = 1."""
    generator = torch.Generator().manual_seed(1)
    q = torch.softmax(torch.randn(5, generator=generator, dtype=torch.float64), 0)
    energy = scale * torch.randn(5, generator=generator, dtype=torch.float64)
    z = (q * torch.exp(-energy)).sum()
    for token in range(5):
        exact = -(q[token].log() - energy[token] - z.log())
        terms = [energy_loss_terms(energy[token].view(1, 1), energy[y].view(1, 1, 1), "direct") for y in range(5)]
        expected = -q[token].log() + sum(q[y] * (data + negative).item() for y, (data, negative) in enumerate(terms))
        assert expected >= exact - 1e-12
        if scale == 0.0:
            assert_close(expected, exact, atol=1e-12, rtol=0)
    shifted = energy + z.log()  # Z = 1: the bound is tight
    data, negative = energy_loss_terms(shifted[:1].view(1, 1), shifted.view(1, 5, 1), "direct")
    weighted = shifted[0] + (q * torch.exp(-shifted)).sum() - 1
    assert_close(weighted, energy[0] + z.log(), atol=1e-12, rtol=0)
    assert_close(data + negative, (shifted[0] + torch.exp(-shifted).mean() - 1).view(1, 1))


@pytest.mark.parametrize("form", ["nce", "rank"])
def test_the_density_ratio_is_stationary(form):
    """At E = log q - log p, where the data has law p and the negatives law q, the expected gradient is zero."""
    generator = torch.Generator().manual_seed(2)
    p, q = (torch.softmax(torch.randn(4, generator=generator, dtype=torch.float64), 0) for _ in range(2))
    energy = (q.log() - p.log()).requires_grad_()
    loss = sum(
        p[x] * q[y] * sum(energy_loss_terms(energy[x].view(1, 1), energy[y].view(1, 1, 1), form)).squeeze()
        for x in range(4)
        for y in range(4)
    )
    assert torch.autograd.grad(loss, energy)[0].abs().max() <= 1e-12


@pytest.mark.parametrize("form", ENERGY_LOSSES)
def test_zero_energies_give_the_value_of_no_information(form):
    data, negative = energy_loss_terms(torch.zeros(2, 3), torch.zeros(2, 4, 3), form)
    expected = 2 * math.log(2) if form == "nce" else 0.0
    assert_close(data + negative, torch.full((2, 3), expected))


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match=r"energy_loss must be one of .*'direct', 'nce', 'rank'.*got \"mse\""):
        energy_loss_terms(torch.zeros(1, 1), torch.zeros(1, 1, 1), "mse")
