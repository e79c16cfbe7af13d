"""The draw: its law against enumeration, its limits, strata, budgets and probabilities."""

import itertools
import math

import numpy as np
import pytest

from hf_elm.selection import select


def sequential_law(logits, count):
    """Probability of every ordered choice of ``count`` items, each by softmax among those that are left."""
    law = {}
    for order in itertools.permutations(range(len(logits)), count):
        probability, left = 1.0, np.exp(np.asarray(logits, dtype=np.float64))
        for item in order:
            probability *= left[item] / left.sum()
            left[item] = 0.0
        law[order] = probability
    assert sum(law.values()) == pytest.approx(1.0)
    return law


def chi_square(law, found):
    draws = sum(found.values())
    return sum((found.get(outcome, 0) - draws * p) ** 2 / (draws * p) for outcome, p in law.items())


def frequencies(draws, *arguments, **options):
    found = {}
    for seed in range(draws):
        outcome = tuple(select(*arguments, seed=seed, **options).indices.tolist())
        found[outcome] = found.get(outcome, 0) + 1
    return found


@pytest.mark.parametrize(
    ("temperature", "count", "critical"),
    [(1.0, 2, 31.26), (0.5, 3, 49.73), (3.0, 1, 16.27), (math.inf, 2, 31.26)],  # 0.999 quantiles, outcomes - 1 degrees
)
def test_the_law_is_that_of_sequential_softmax_draws(temperature, count, critical):
    scores = [0.3, -1.0, 1.1, 0.0]
    law = sequential_law(np.zeros(4) if math.isinf(temperature) else np.array(scores) / temperature, count)
    found = frequencies(4000, scores, count=count, temperature=temperature, standardize=False)
    assert found.keys() <= law.keys()
    assert chi_square(law, found) < critical
    wrong = sequential_law(-np.array(scores), count)  # the other sign is told apart
    assert chi_square(wrong, found) > 10 * critical


def test_a_small_temperature_takes_the_best_and_zero_always():
    scores = [0.1, 5.0, -2.0, 3.0, None, 4.0, math.nan, math.inf]
    for temperature in (0.0, 1e-6):
        found = select(scores, count=3, temperature=temperature)
        assert found.indices.tolist() == [1, 5, 3]
        assert found.num_eligible == 5
        assert found.inclusion_probabilities.tolist() == pytest.approx([1, 1, 1])
        assert found.probabilities.tolist() == pytest.approx([1, 0, 0])
    first = {int(select([1.0, 1.0, 0.0], count=1, temperature=0, seed=seed).indices[0]) for seed in range(20)}
    assert first == {0, 1}  # of equal ones a random one


def test_standardised_scores_make_temperatures_comparable():
    scores = np.random.default_rng(0).normal(size=50)
    first, other = (select(values, count=20, seed=4) for values in (scores, 7 * scores + 100))
    assert first.indices.tolist() == other.indices.tolist()
    np.testing.assert_allclose(first.inclusion_probabilities, other.inclusion_probabilities, rtol=1e-9)
    raw = [select(values, count=20, seed=4, standardize=False).indices.tolist() for values in (scores, 7 * scores)]
    assert raw[0] != raw[1]
    assert select([2.0, 2.0], count=2).probabilities.tolist() == [0.5, 0.5]  # no spread to divide by


def test_a_seed_gives_the_same_draw_and_shorter_draws_are_its_beginnings():
    scores = np.random.default_rng(1).normal(size=40)
    strata = ["a"] * 25 + ["b"] * 15
    for options in ({}, {"strata": strata}):
        whole = select(scores, count=30, seed=9, **options).indices.tolist()
        assert whole == select(scores, count=30, seed=9, **options).indices.tolist()
        assert whole != select(scores, count=30, seed=10, **options).indices.tolist()
        assert select(scores, count=7, seed=9, **options).indices.tolist() == whole[:7]
        assert select(scores, fraction=0.5, seed=9, **options).indices.tolist() == whole[:20]
    assert sorted(select(scores, count=99).indices.tolist()) == list(range(40))


@pytest.mark.parametrize("strata", [None, ["a", "b"] * 6])
def test_weights_by_inclusion_estimate_sums_without_bias(strata):
    generator = np.random.default_rng(2)
    scores, values = generator.normal(size=12), generator.uniform(1, 2, size=12)
    estimates = []
    for seed in range(3000):
        found = select(scores, count=4, seed=seed, strata=strata)
        estimates.append((values[found.indices] / found.inclusion_probabilities).sum())
    error = np.std(estimates) / math.sqrt(len(estimates))
    assert abs(np.mean(estimates) - values.sum()) < 4 * error
    assert error < 0.05 * values.sum()


def test_strata_have_their_share_of_every_beginning():
    strata = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    scores = np.concatenate([np.full(60, -5.0), np.full(30, 5.0), np.zeros(10)])
    order = select(scores, count=100, strata=strata, seed=3).indices
    for count in (1, 7, 10, 33, 50, 100):
        for name, share in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
            taken = sum(strata[i] == name for i in order[:count])
            assert abs(taken - share * count) <= 1.0
    sizes = np.where(np.arange(100) < 60, 1.0, 2.0)  # a and the others: 60 and 80
    budget = select(scores, budget=70, sizes=sizes, strata=strata, seed=3).indices
    assert sizes[budget].sum() == pytest.approx(70, abs=1)
    assert sum(sizes[i] for i in budget if strata[i] == "a") == pytest.approx(30, abs=2)


def test_within_strata_the_draw_is_uniform_or_by_score():
    strata, scores = ["a", "a", "a", "b"], [0.0, 1.0, 2.0, 9.0]
    for temperature, logits in ((math.inf, np.zeros(3)), (1.0, np.arange(3.0))):
        found = frequencies(3000, scores, count=4, strata=strata, temperature=temperature, standardize=False)
        own = {}
        for order, times in found.items():
            inner = tuple(i for i in order if i < 3)
            own[inner] = own.get(inner, 0) + times
        assert chi_square(sequential_law(logits, 3), own) < 20.52  # 0.999 quantile, 5 degrees


def test_a_budget_ends_before_the_document_that_exceeds_it():
    sizes, scores = [4, 3, 9, 1], [4.0, 3.0, 2.0, 1.0]
    for budget, count in ((4, 1), (6.9, 1), (7, 2), (15, 2), (16, 3), (17, 4), (1000, 4)):
        assert len(select(scores, budget=budget, sizes=sizes, temperature=0).indices) == count
    with pytest.raises(ValueError, match="size of 4, more than the 3"):
        select(scores, budget=3, sizes=sizes, temperature=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of count, fraction and budget, got none"),
        ({"count": 1, "fraction": 0.5}, "got count, fraction"),
        ({"count": 0}, "count must be at least 1"),
        ({"fraction": 1.0}, "strictly between 0 and 1"),
        ({"budget": 5}, "come with sizes"),
        ({"count": 1, "temperature": -1}, "temperature must be 0"),
        ({"count": 1, "temperature": math.nan}, "temperature must be 0"),
        ({"count": 1, "strata": ["a"]}, "strata must have an entry for each of 2"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        select([1.0, 2.0], **options)
    with pytest.raises(ValueError, match="nothing to select"):
        select([None, math.nan], count=1)
