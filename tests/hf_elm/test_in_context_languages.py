"""Random automata: minimal, canonical, never shared by train and test, sampled as they say; n-grams and scores by hand."""

import itertools
import math

import numpy as np
import pytest

from hf_elm.in_context_evaluation import TRUTH, evaluate_in_context
from hf_elm.in_context_languages import SYMBOLS, Automaton, LanguageSettings, languages, minimal, random_automaton
from hf_elm.in_context_predictors import ngram_distributions


SETTINGS = LanguageSettings()
LARGE = LanguageSettings(num_symbols=11, min_symbols=4, min_states=3, max_states=7, max_edges=4, length=97)


def words(edges, longest, start=0):
    """All words of up to ``longest`` symbols that can be read from ``start``."""
    found, level = {""}, [("", start)]
    for _ in range(longest):
        level = [(word + SYMBOLS[symbol], target) for word, state in level for symbol, target in edges[state]]
        found |= {word for word, _ in level}
    return found


def raw_automata(count, seed=0):
    """Automata with many states and few symbols, of which some are the same and some cannot be reached."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        states = int(generator.integers(1, 8))
        yield [
            [(symbol, int(generator.integers(states))) for symbol in range(3) if generator.random() < 0.5]
            or [(0, state)]
            for state in range(states)
        ]


def test_minimal_keeps_the_language_and_tells_all_states_apart():
    for edges in raw_automata(40):
        found = minimal(edges)
        assert words(found.edges, 6) == words(edges, 6)
        assert found.num_states <= len(edges)
        languages_of_states = {frozenset(words(found.edges, found.num_states + 1, s)) for s in range(found.num_states)}
        assert len(languages_of_states) == found.num_states


def test_equal_languages_are_equal_objects():
    generator = np.random.default_rng(0)
    for edges in raw_automata(40, seed=1):
        order = np.concatenate([[0], 1 + generator.permutation(len(edges) - 1)]).astype(int)  # the start stays
        place = np.argsort(order)
        renumbered = [[(symbol, int(place[target])) for symbol, target in reversed(edges[old])] for old in order]
        doubled = [*edges, edges[0]]  # a copy of the start that nothing reaches
        assert minimal(renumbered) == minimal(edges) == minimal(doubled)
        assert minimal(minimal(edges).edges) == minimal(edges)


@pytest.mark.parametrize("settings", [SETTINGS, LARGE])
def test_no_language_is_in_both_parts_whatever_the_seeds(settings):
    train = [a for seed in (0, 1) for a, _ in itertools.islice(languages(settings, "train", seed), 1500)]
    test = [a for seed in (0, 1, 7) for a, _ in itertools.islice(languages(settings, "test", seed), 150)]
    assert not set(train) & set(test)
    assert {a.part for a in train} == {"train"}
    assert {a.part for a in test} == {"test"}
    for start in (0, 1500):  # all different within a seed
        assert len(set(train[start : start + 1500])) == 1500
    generator = np.random.default_rng(5)
    drawn = [a for a in (random_automaton(settings, generator) for _ in range(2000)) if a]
    share = sum(a.part == "test" for a in drawn) / len(drawn)
    assert 0.06 < share < 0.14  # a tenth, by far more than three standard errors (.007)


def test_automata_and_rows_keep_to_the_settings_and_depend_on_the_seed_alone():
    problems = list(itertools.islice(languages(LARGE, "test", 3), 60))
    again = list(itertools.islice(languages(LARGE, "test", 3), 60))
    assert problems == again
    assert problems != list(itertools.islice(languages(LARGE, "test", 4), 60))
    for automaton, row in problems:
        assert LARGE.min_states <= automaton.num_states <= LARGE.max_states
        assert all(1 <= len(out) <= LARGE.max_edges for out in automaton.edges)
        assert len({symbol for out in automaton.edges for symbol, _ in out}) <= LARGE.num_symbols
        assert len(row) == LARGE.length
        assert row[0] == " "
        assert "  " not in row
        assert all(automaton.accepts(word) for word in row.split())
    assert {a.num_states for a, _ in problems} == set(range(3, 8))


def test_rows_follow_the_distributions_that_are_called_true():
    automaton = Automaton((((0, 1), (2, 0)), ((1, 2),), ((0, 0), (1, 1), (3, 2))))
    settings = LanguageSettings(num_symbols=4, length=40_000, stop_probability=0.2)
    row = automaton.sample(settings, np.random.default_rng(0))
    truth = automaton.next_distributions(row, settings)
    np.testing.assert_allclose(truth.sum(1), 1, atol=1e-12)
    following = np.array([settings.characters.index(c) for c in row[1:]])
    states, counts = np.unique(truth[:-1], axis=0, return_counts=True)
    assert len(states) == 4  # three states within a string, and its start
    for state, count in zip(states, counts, strict=True):
        places = (truth[:-1] == state).all(1)
        found = np.bincount(following[places], minlength=5) / count
        spread = np.sqrt(state * (1 - state) / count)
        assert (np.abs(found - state) <= 4.5 * spread + 1e-12).all()  # 18 numbers: 4.5 sigma is 1e-4
        assert (found[state == 0] == 0).all()


def test_impossible_rows_and_words_are_told():
    automaton = Automaton((((0, 0),),))
    settings = LanguageSettings(num_symbols=2, min_symbols=1, min_states=1, length=5)
    assert automaton.accepts("aaa")
    assert not automaton.accepts("ab")
    with pytest.raises(ValueError, match="'b' at place 2"):
        automaton.next_distributions(" abaa", settings)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_symbols": 19}, "num_symbols must be from 1 to 18, got 19"),
        ({"min_symbols": 7}, "min_symbols must be from 1 to num_symbols=6"),
        ({"min_states": 9}, "max_states must be from min_states=9"),
        ({"max_edges": 0}, "max_edges must be at least 1"),
        ({"stop_probability": 1.0}, "stop_probability must be strictly between 0 and 1"),
        ({"length": 1}, "length must be at least 2"),
    ],
)
def test_settings_out_of_range_are_refused(fields, named):
    with pytest.raises(ValueError, match=named):
        LanguageSettings(**fields)


def test_too_few_languages_and_unknown_parts_are_refused():
    few = LanguageSettings(num_symbols=1, min_symbols=1, min_states=1, max_states=1, max_edges=1)
    with pytest.raises(ValueError, match="allows few languages"):
        list(languages(few, "train"))
    with pytest.raises(ValueError, match="part must be one of train, test, got 'held_out'"):
        next(languages(SETTINGS, "held_out"))


def naive_ngram(prefix, symbol, order, characters):
    """p_n by its recursion, counting afresh."""
    if order == 0:
        return 1 / len(characters)
    history = prefix[len(prefix) - order + 1 :]
    if len(history) < order - 1:
        return naive_ngram(prefix, symbol, order - 1, characters)
    places = [i for i in range(order - 1, len(prefix)) if prefix[i - order + 1 : i] == history]
    followers = [prefix[i] for i in places]
    kinds = len(set(followers))
    lower = naive_ngram(prefix, symbol, order - 1, characters)
    return (followers.count(symbol) + kinds * lower) / (len(followers) + kinds) if followers else lower


@pytest.mark.parametrize("order", [1, 2, 3])
def test_ngrams_equal_their_recursion(order):
    settings = LanguageSettings(length=29)
    rows = [row for _, row in itertools.islice(languages(settings, "test"), 3)]
    found = ngram_distributions(rows, settings, order)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-12)
    for row, probs in zip(rows, found, strict=True):
        for place in range(len(row)):
            expected = [naive_ngram(row[: place + 1], c, order, settings.characters) for c in settings.characters]
            np.testing.assert_allclose(probs[place], expected, atol=1e-12)
    with pytest.raises(ValueError, match="order must be at least 1"):
        ngram_distributions(rows, settings, 0)


def test_the_truth_is_the_bound_and_a_uniform_guess_is_as_computed_by_hand():
    problems = list(itertools.islice(languages(SETTINGS, "test"), 31))
    shape = (31, SETTINGS.length, 7)
    uniform = np.full(shape, 1 / 7)
    bigram = ngram_distributions([row for _, row in problems], SETTINGS, 2)
    result = evaluate_in_context(problems, {"uniform": uniform, "bigram": bigram}, SETTINGS, baseline="uniform")
    scores = {score.name: score for score in result.scores}
    truth = scores[TRUTH]
    assert truth.means["legal"] == 1.0
    assert truth.means["tv"] == truth.means["kl"] == 0.0
    assert truth.means["nll"] < scores["bigram"].means["nll"] < scores["uniform"].means["nll"]
    assert scores["uniform"].means["nll"] == pytest.approx(math.log(7), abs=1e-12)
    by_language = []
    for automaton, row in problems:
        true = automaton.next_distributions(row, SETTINGS)[:-1]
        by_language.append(np.mean([(p[p > 0] * np.log(7 * p[p > 0])).sum() for p in true]))
    assert scores["uniform"].means["kl"] == pytest.approx(np.mean(by_language), abs=1e-12)
    assert scores["uniform"].standard_errors["kl"] == pytest.approx(np.std(by_language, ddof=1) / 31**0.5, abs=1e-12)
    difference = scores["bigram"].means["kl"] - scores["uniform"].means["kl"]
    assert scores["bigram"].kl_difference == pytest.approx(difference, abs=1e-12)
    assert scores["uniform"].kl_difference is None
    assert len(truth.quarters["tv"]) == 4
    text = str(result)
    assert "31 new languages of 2 to 4 states" in text
    assert TRUTH in text


def test_probability_given_to_other_tokens_counts_against_a_model():
    problems = list(itertools.islice(languages(SETTINGS, "test"), 2))
    truth = np.stack([automaton.next_distributions(row, SETTINGS) for automaton, row in problems])
    result = evaluate_in_context(problems, {"half": truth / 2}, SETTINGS)
    score = result.scores[0]
    assert score.means["tv"] == pytest.approx(0.5, abs=1e-12)  # half of the mass is elsewhere
    assert score.means["kl"] == pytest.approx(math.log(2), abs=1e-12)
    with pytest.raises(ValueError, match=r"predictions\['half'\] must have shape"):
        evaluate_in_context(problems, {"half": truth[:1]}, SETTINGS)
    with pytest.raises(ValueError, match="baseline='LM' is not among"):
        evaluate_in_context(problems, {"half": truth}, SETTINGS, baseline="LM")
    with pytest.raises(ValueError, match="at least one automaton"):
        evaluate_in_context([], {}, SETTINGS)
