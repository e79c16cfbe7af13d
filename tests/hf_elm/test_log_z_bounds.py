"""On a vocabulary of at most five tokens every expectation over samples is a finite sum, so bounds are checked exactly."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_elm import log_z_bounds as bounds


UPPER_BOUNDS = [bounds.fenchel_split_upper, bounds.fenchel_leave_one_out_upper]


@st.composite
def energy_models(draw, largest=6.0):
    """(log_probs, energies) over 2 to 5 tokens, peaked and heavy-tailed ones included."""
    vocab = draw(st.integers(2, 5))
    floats = st.floats(-largest, largest, allow_nan=False)
    logits = torch.tensor(draw(st.lists(floats, min_size=vocab, max_size=vocab)), dtype=torch.float64)
    energies = torch.tensor(draw(st.lists(floats, min_size=vocab, max_size=vocab)), dtype=torch.float64)
    return torch.log_softmax(logits, -1), energies


def split_head(log_probs, energies, head_size):
    """The ``head_size`` likeliest tokens as a HeadStratum (None for 0), and the tail's log-probs and energies."""
    order = log_probs.argsort(descending=True)
    head, tail = order[:head_size], order[head_size:]
    log_tail_mass = torch.logsumexp(log_probs[tail], 0)
    stratum = bounds.head_stratum(log_probs[head], energies[head], log_tail_mass) if head_size else None
    return stratum, log_probs[tail] - log_tail_mass, energies[tail]


def exact_expectation(bound, log_probs, energies, num_samples, head_size=0):
    """Sum of probability x bound over every tuple of ``num_samples`` tokens."""
    head, tail_log_probs, tail_energies = split_head(log_probs, energies, head_size)
    tuples = torch.tensor(list(itertools.product(range(len(tail_energies)), repeat=num_samples)))
    probability = tail_log_probs[tuples].sum(-1).exp()
    if head is not None:
        head = bounds.HeadStratum(*(part.expand(len(tuples)) for part in head))
    return (probability * bound(tail_energies[tuples], head)).sum().item()


@given(model=energy_models(), num_samples=st.integers(1, 4), head_size=st.integers(0, 4))
@settings(max_examples=80, deadline=None)
def test_jensen_is_below_log_z_in_expectation_and_rises_with_samples(model, num_samples, head_size):
    head_size = min(head_size, len(model[0]) - 1)
    log_z = bounds.exact_log_z(*model).item()
    expected = exact_expectation(bounds.jensen_lower, *model, num_samples, head_size)
    assert expected <= log_z + 1e-9
    if num_samples > 1:
        assert expected >= exact_expectation(bounds.jensen_lower, *model, num_samples - 1, head_size) - 1e-9


@pytest.mark.parametrize("bound", UPPER_BOUNDS)
@given(model=energy_models(), num_samples=st.integers(2, 4), head_size=st.integers(0, 4))
@settings(max_examples=80, deadline=None)
def test_fenchel_is_above_log_z_in_expectation(bound, model, num_samples, head_size):
    head_size = min(head_size, len(model[0]) - 1)
    expected = exact_expectation(bound, *model, num_samples, head_size)
    assert expected >= bounds.exact_log_z(*model).item() - 1e-9


@given(model=energy_models(), num_samples=st.integers(1, 3), log_pilot=st.floats(-5, 5))
@settings(max_examples=50, deadline=None)
def test_any_pilot_gives_the_tangent_in_expectation(model, num_samples, log_pilot):
    log_z = bounds.exact_log_z(*model).item()
    pilot = torch.tensor(log_pilot, dtype=torch.float64)
    expected = exact_expectation(lambda e, head: bounds.fenchel_upper(e, pilot, head), *model, num_samples)
    tangent = math.exp(log_z - log_pilot) - 1 + log_pilot
    assert expected == pytest.approx(tangent, rel=1e-9, abs=1e-9)
    assert tangent >= log_z - 1e-12


@pytest.mark.parametrize("scale", [0.1, 0.3])
@pytest.mark.parametrize("num_samples", [2, 3, 4])
def test_leave_one_out_is_tighter_than_the_split_for_moderate_energies(scale, num_samples):
    torch.manual_seed(0)
    log_probs, energies = torch.log_softmax(torch.randn(5).double(), -1), scale * torch.randn(5).double()
    log_z = bounds.exact_log_z(log_probs, energies).item()
    split, loo = (exact_expectation(bound, log_probs, energies, num_samples) - log_z for bound in UPPER_BOUNDS)
    assert 0 < loo <= split + 1e-12  # equal at K = 2, where both leave one sample to one
    assert num_samples == 2 or loo < 0.8 * split


@given(model=energy_models(), energy=st.floats(-30, 30), num_samples=st.integers(2, 4), head_size=st.integers(0, 4))
@settings(max_examples=30, deadline=None)
def test_every_value_is_exact_when_the_energy_is_constant(model, energy, num_samples, head_size):
    log_probs, energies = model[0], torch.full_like(model[1], energy)
    head, _, tail_energies = split_head(log_probs, energies, min(head_size, len(log_probs) - 1))
    samples = tail_energies[:1].expand(num_samples)
    for function in (bounds.jensen_lower, *UPPER_BOUNDS, bounds.jackknife_log_z, bounds.jackknife_upper):
        assert function(samples, head).item() == pytest.approx(-energy, abs=1e-9)


@given(model=energy_models(largest=3.0), head_size=st.integers(1, 5), energy_bound=st.floats(3.0, 6.0))
@settings(max_examples=80, deadline=None)
def test_certified_interval_contains_log_z_always_and_closes_at_the_whole_vocabulary(model, head_size, energy_bound):
    head_size = min(head_size, len(model[0]))
    head, _, _ = split_head(*model, head_size)
    lower, upper = bounds.certified_interval(head, energy_bound)
    log_z = bounds.exact_log_z(*model)
    assert lower <= log_z + 1e-12
    assert upper >= log_z - 1e-12
    if head_size == len(model[0]):
        assert lower == upper == pytest.approx(log_z.item(), abs=1e-12)


def test_a_head_of_the_whole_vocabulary_makes_every_bound_exact():
    torch.manual_seed(1)
    log_probs, energies = torch.log_softmax(torch.randn(3, 7), -1).double(), torch.randn(3, 7).double()
    head = bounds.head_stratum(log_probs, energies, torch.full((3,), -torch.inf))
    samples = torch.randn(3, 4)
    for function in (bounds.jensen_lower, *UPPER_BOUNDS):
        torch.testing.assert_close(function(samples, head), bounds.exact_log_z(log_probs, energies))


@pytest.mark.parametrize("num_samples", [2, 3, 4])
def test_the_jackknife_upper_is_below_log_z_for_a_heavy_tail(num_samples):
    """A token of probability 1% carries 10/11 of Z: few samples ever see it, and no extrapolation in K can."""
    log_probs = torch.tensor([0.99, 0.01], dtype=torch.float64).log()
    energies = torch.tensor([0.0, -math.log(1000.0)], dtype=torch.float64)
    log_z = bounds.exact_log_z(log_probs, energies).item()
    assert log_z == pytest.approx(math.log(10.99))
    assert exact_expectation(bounds.jackknife_upper, log_probs, energies, num_samples) < log_z - 1.0
    for bound in UPPER_BOUNDS:
        assert exact_expectation(bound, log_probs, energies, num_samples) > log_z
    lower = exact_expectation(bounds.jensen_lower, log_probs, energies, num_samples, head_size=1)
    assert lower == pytest.approx(log_z)  # the tail is one token: nothing is left to chance


def test_the_jackknife_removes_the_leading_bias_when_energies_are_mild():
    torch.manual_seed(0)
    log_probs, energies = torch.log_softmax(torch.randn(5).double(), -1), 0.2 * torch.randn(5).double()
    log_z = bounds.exact_log_z(log_probs, energies).item()
    jensen, jackknife, upper = (
        exact_expectation(function, log_probs, energies, 4) - log_z
        for function in (bounds.jensen_lower, bounds.jackknife_log_z, bounds.jackknife_upper)
    )
    assert abs(jackknife) < 0.1 * abs(jensen)
    assert upper == pytest.approx(-jensen, rel=0.1)


@pytest.mark.parametrize("head_size", [0, 2])
def test_effective_sample_fraction_equals_its_definition(head_size):
    torch.manual_seed(2)
    log_probs, energies = torch.log_softmax(torch.randn(5).double(), -1), torch.randn(5).double()
    weights = torch.exp(-energies)
    chi_square = ((log_probs.exp() * weights**2).sum() / (log_probs.exp() * weights).sum() ** 2 - 1).item()
    exact = bounds.effective_sample_fraction(
        bounds.exact_log_z(log_probs, energies), bounds.exact_log_z(log_probs, 2 * energies)
    )
    assert exact.item() == pytest.approx(1 / (1 + chi_square))

    order = log_probs.argsort(descending=True)
    head, tail = order[:head_size], order[head_size:]
    kept = (log_probs[head], energies[head], log_probs[tail].logsumexp(0)) if head_size else (None, None, None)
    _, tail_log_probs, tail_energies = split_head(log_probs, energies, head_size)
    moments = [bounds.log_second_moment(energy.view(1), *kept).exp() for energy in tail_energies]
    mean = (tail_log_probs.exp() * torch.stack(moments)).sum()
    assert mean.item() == pytest.approx((log_probs.exp() * weights**2).sum().item())  # unbiased


def test_far_apart_energies_neither_overflow_nor_cancel():
    energies = torch.tensor([-600.0, 0.0, 600.0, 300.0])
    assert bounds.jensen_lower(energies).item() == pytest.approx(600.0 - math.log(4))
    loo = bounds.jackknife_log_z(energies).item()
    assert math.isfinite(loo)
    assert bounds.fenchel_split_upper(torch.full((6,), 700.0)).item() == pytest.approx(-700.0)


def test_leading_axes_are_kept_and_float32_is_promoted():
    energies = torch.randn(2, 3, 8)
    for function in (bounds.jensen_lower, *UPPER_BOUNDS, bounds.jackknife_log_z, bounds.jackknife_upper):
        value = function(energies)
        assert value.shape == (2, 3)
        assert value.dtype == torch.float64
        torch.testing.assert_close(value[1, 2], function(energies[1, 2]))


@pytest.mark.parametrize("function", [*UPPER_BOUNDS, bounds.jackknife_log_z, bounds.jackknife_upper])
def test_one_sample_is_refused_where_two_are_needed(function):
    with pytest.raises(ValueError, match=r"at least 2 samples.*\(3, 1\)"):
        function(torch.zeros(3, 1))


def test_an_unbounded_energy_cannot_be_certified():
    head = bounds.HeadStratum(torch.zeros(1), torch.zeros(1))
    with pytest.raises(ValueError, match="energy_bound > 0, got 0"):
        bounds.certified_interval(head, 0.0)
