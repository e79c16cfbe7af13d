"""Choosing among samples: shares against the sum over all sequences, pruning, ties, and samples that plain generation gives."""

import itertools
import math

import pytest
import torch

from hf_elm.chosen_continuation import choose_continuation, report
from hf_elm.continuation_samples import ContinuationSampler, score_samples
from hf_elm.continuation_scores import ContinuationScorer, EnergyScorer, scorer_of
from hf_elm.sample_choice import CHOICES, Sample, answer_of, choose_sample
from hf_elm.text_scores import TextScorer
from hf_elm.weibull_mixture import WeibullMixture, _joint, fit_mixture, unlikely
from tests.hf_elm import tiny_evaluation, tiny_harness


LETTERS = tiny_harness.letters()
PROMPT = "Mr Fox "
MODELS = {"monarc": tiny_harness.monarc, "nano_ebm": tiny_harness.nano_ebm, "gpt2": tiny_harness.gpt2}


def sample(text, log_prob=0.0, ids=None, energy=None):
    return Sample(text, tuple(text.encode()) if ids is None else ids, True, {"lm": log_prob}, energy)


# ------------------------------------------------------------------------------------------------------------- choices


def elm_log_probs(model, ids):
    vocab = model.get_input_embeddings().weight.shape[0]
    rows = torch.tensor([[*ids, token] for token in range(vocab)])
    with torch.no_grad():
        lm = model.lm(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        energies = model.score_candidates(rows, rows.unsqueeze(1)).token_energies[:, -1]
    return lm, (lm - energies).log_softmax(-1)


def test_consistency_over_every_sequence_is_the_distribution_of_the_answer():
    """With all sequences of two tokens as samples, the shares are the model's own P(answer); the answer is the second token."""
    vocab, prompt = 5, [3, 1]
    model = tiny_evaluation.make_model(vocab)
    every = list(itertools.product(range(vocab), repeat=2))
    exact = {"lm": torch.zeros(vocab).double(), "elm": torch.zeros(vocab).double()}
    for first in range(vocab):
        both, then = elm_log_probs(model, prompt), elm_log_probs(model, [*prompt, first])
        for name, start, end in zip(exact, both, then, strict=True):
            exact[name] += (start[first] + end).exp()
    samples = [Sample(f"{a}{b}", (a, b)) for a, b in every]
    scored = score_samples(samples, prompt, TextScorer(EnergyScorer(model, 7), LETTERS))
    for name, law in exact.items():
        assert sum(math.exp(each.log_probs[name]) for each in scored) == pytest.approx(1, abs=1e-12)
        found = choose_sample(scored, "consistency", name, r"\d$", prune=False)
        assert found.shares == pytest.approx({str(b): law[b].item() for b in range(vocab)}, abs=1e-12)
        assert list(found.shares.values()) == sorted(found.shares.values(), reverse=True)
        assert found.answer == str(int(law.argmax()))
        of_answer = [each for each in scored if each.text[1] == found.answer]
        assert found.sample == max(of_answer, key=lambda each: each.log_probs[name])
        best = choose_sample(scored, "likelihood", name)
        assert best.sample.log_probs[name] == max(each.log_probs[name] for each in scored)
    assert exact["lm"] != pytest.approx(exact["elm"], abs=1e-3)
    lowest = choose_sample(scored, "energy")
    assert lowest.sample.energy == min(each.energy for each in scored)


def test_a_repeated_sample_votes_again_but_is_as_probable_as_before():
    samples = [sample("b", math.log(0.3))] * 3 + [sample("a", math.log(0.4)), sample("A", math.log(0.1), ids=(1, 2))]
    vote = choose_sample(samples, "vote")
    assert (vote.answer, vote.index) == ("b", 0)
    assert vote.shares == pytest.approx({"b": 0.6, "a": 0.2, "A": 0.2})
    found = choose_sample(samples, "consistency", prune=False)
    assert (found.answer, found.index) == ("a", 3)
    assert found.shares == pytest.approx({"a": 0.5, "b": 0.375, "A": 0.125})
    several = choose_sample(samples, "consistency", answer_pattern="(?i)[ab]$", prune=False)
    assert several.shares == pytest.approx({"a": 0.5, "b": 0.375, "A": 0.125})


def test_different_ways_to_one_answer_add_up_and_the_likeliest_is_shown():
    samples = [sample("so 7", -2.0), sample("no 8", -1.5), sample("or 7", -1.9)]
    found = choose_sample(samples, answer_pattern=r"\d", prune=False)
    assert (found.answer, found.index) == ("7", 2)
    assert choose_sample(samples, "likelihood").index == 1


def test_ties_go_to_the_first():
    samples = [sample("x", -1.0), sample("y", -1.0), sample("y", -1.0), sample("x", -1.0)]
    for choose in ("likelihood", "vote", "consistency"):
        assert choose_sample(samples, choose).index == 0
    assert choose_sample(samples[::-1], "vote").answer == "x"
    assert choose_sample([sample("x", energy=0.5), sample("y", energy=0.5)], "energy").index == 0


def test_probabilities_that_no_float_holds():
    samples = [sample("a", -9000.0), sample("b", -9000.5), sample("b", -9000.4, ids=(9,))]
    found = choose_sample(samples, prune=False)
    assert found.answer == "b"
    assert found.shares["b"] == pytest.approx(1 / (1 + 1 / (math.exp(-0.5) + math.exp(-0.4))))


def test_per_token_probabilities():
    samples = [sample("long", -4.0), sample("x", -2.0)]
    assert choose_sample(samples, "likelihood").sample.text == "x"
    assert choose_sample(samples, "likelihood", normalize="tokens").sample.text == "long"


def test_an_end_of_an_interval_is_not_the_default_column():
    samples = [
        Sample("a", (1,), True, {"lm": -3.0, "elm": -1.0, "elm_lower": -2.0, "elm_upper": -0.9}),
        Sample("b", (2,), True, {"lm": -1.0, "elm": -1.5, "elm_lower": -3.0, "elm_upper": -0.1}),
    ]
    assert choose_sample(samples, "likelihood").sample.text == "a"
    assert choose_sample(samples, "likelihood", "elm_upper").sample.text == "b"


def test_answers():
    assert answer_of(" 12 \n") == "12"
    assert answer_of("= 3 = 45", r"= (\d+)") == "45"
    assert answer_of("3 and 45", r"\d+") == "45"
    assert answer_of("none", r"\d") is None
    assert answer_of("b", "(a)|b") is None
    with pytest.raises(ValueError, match="answer_pattern='\\[' is no regular expression"):
        answer_of("x", "[")


def test_samples_without_an_answer_take_no_part():
    samples = [sample("no", -0.1), sample("it is 4", -3.0), sample("none", -0.2)]
    found = choose_sample(samples, answer_pattern=r"\d")
    assert (found.answer, found.kept, found.shares) == ("4", [False, True, False], {"4": 1.0})
    nothing = choose_sample(samples[::2], "consistency", answer_pattern=r"\d")
    assert (nothing.answer, nothing.index, nothing.shares) == (None, 0, {})
    lines = report(nothing, samples[::2], "consistency")
    assert any("no sample has an answer" in line for line in lines)


def test_wrong_choices():
    one = [sample("x")]
    with pytest.raises(ValueError, match="draw at least one"):
        choose_sample([])
    with pytest.raises(ValueError, match="choose must be one of likelihood"):
        choose_sample(one, "best")
    with pytest.raises(ValueError, match='by must be one of lm, got "elm"'):
        choose_sample(one, "likelihood", "elm")
    with pytest.raises(ValueError, match="needs samples scored by energy"):
        choose_sample(one, "energy")
    with pytest.raises(ValueError, match="samples are not scored"):
        choose_sample([Sample("x", (1,))], "consistency")
    with pytest.raises(ValueError, match="normalize must be one of"):
        choose_sample(one, "likelihood", normalize="bytes")
    assert choose_sample([Sample("x", (1,))], "vote").answer == "x"


# ------------------------------------------------------------------------------------------------------------- pruning


def gumbel_minima(count, location, scale, seed):
    uniform = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return location + scale * (-uniform.log()).log()


def test_the_mixture_is_one_of_weibull_distributions():
    """The density of log p, taken back to p, is the textbook's Weibull mixture."""
    mixture = WeibullMixture(*(torch.tensor(each).double() for each in ([0.3, 0.7], [0.5, -1.0], [0.4, 0.8])), 0.0)
    p = torch.tensor([0.05, 0.4, 1.3]).double()
    parts = []
    for share, location, scale in zip(mixture.shares, mixture.locations, mixture.scales, strict=True):
        k, lam = 1 / scale, location.exp()
        parts.append(share * k / lam * (p / lam) ** (k - 1) * torch.exp(-((p / lam) ** k)))
    expected = torch.stack(parts, -1)
    fields = (each.numpy() for each in (p.log(), mixture.shares, mixture.locations, mixture.scales))
    found = torch.from_numpy(_joint(*fields)).exp() / p.unsqueeze(-1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(mixture.memberships(p.log()), expected / expected.sum(-1, keepdim=True))


def test_two_kinds_are_told_apart_wherever_they_lie():
    high, low = gumbel_minima(60, -2.0, 0.3, 0), gumbel_minima(90, -8.0, 0.7, 1)
    y = torch.cat([high, low])
    mixture = fit_mixture(y)
    assert mixture.shares.tolist() == pytest.approx([0.4, 0.6], abs=0.02)
    assert mixture.locations.tolist() == pytest.approx([-2.0, -8.0], abs=0.3)  # 3 standard errors at 60 samples
    assert mixture.scales.tolist() == pytest.approx([0.3, 0.7], abs=0.2)
    pruned = unlikely(y)
    assert not pruned[:60].any()
    assert pruned[60:].float().mean() > 0.95
    far = fit_mixture(y - 5000)
    assert far.scales.tolist() == pytest.approx(mixture.scales.tolist(), abs=1e-6)
    assert torch.equal(unlikely(y - 5000), pruned)


def test_the_fit_is_a_local_maximum_of_the_likelihood():
    y = torch.cat([gumbel_minima(25, -1.0, 0.5, 2), gumbel_minima(25, -4.0, 0.6, 3)])
    best = fit_mixture(y)
    fields = torch.stack([best.shares, best.locations, best.scales])
    for i, j, step in itertools.product((1, 2), (0, 1), (-0.02, 0.02)):
        moved = fields.clone()
        moved[i, j] += step
        joint = torch.from_numpy(_joint(y.numpy(), *moved.numpy()))
        assert joint.logsumexp(-1).sum().item() < best.log_likelihood


@pytest.mark.parametrize("seed", range(8))
def test_pruning_keeps_the_likeliest_and_follows_its_rule(seed):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(5 + 3 * seed, generator=generator, dtype=torch.float64) * 4 - 50
    found = unlikely(y)
    assert not found[y.argmax()]
    lower = fit_mixture(y).memberships(y)[:, 1] > 0.5
    assert torch.equal(found, lower & (y.exp() < y.exp().mean()))


def test_few_or_equal_samples_are_not_pruned():
    assert not unlikely(torch.tensor([-1.0, -9.0, -20.0])).any()
    assert not unlikely(torch.full((9,), -3.0)).any()
    with pytest.raises(ValueError, match="at least 4 finite values that differ"):
        fit_mixture(torch.full((9,), -3.0))
    repeated = torch.tensor([-1.0] * 6 + [-30.0] * 3)
    assert unlikely(repeated).tolist() == [False] * 6 + [True] * 3


def test_a_choice_says_what_was_pruned():
    samples = [sample("a", -1.0 - i / 10, ids=(i,)) for i in range(6)] + [
        sample("b", -40.0 - i, ids=(9, i)) for i in range(6)
    ]
    found = choose_sample(samples)
    assert found.kept == [True] * 6 + [False] * 6
    assert found.shares == {"a": 1.0}
    assert choose_sample(samples, prune=False).kept == [True] * 12


# ------------------------------------------------------------------------------------------------------------- samples


@pytest.fixture(scope="module", params=list(MODELS))
def model(request):
    return MODELS[request.param](LETTERS)


def prompt_ids():
    return LETTERS(PROMPT)["input_ids"]


def plain_text(model, seed, **options):
    ids = torch.tensor([prompt_ids()])
    torch.manual_seed(seed)
    row = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, max_new_tokens=6, **options)
    return LETTERS.decode(row[0, ids.shape[1] :], skip_special_tokens=True)


def test_one_sample_is_plain_generation_with_the_same_seed(model):
    for choose in ("likelihood", "vote", "consistency"):
        found, samples = choose_continuation(
            model, LETTERS, PROMPT, num_samples=1, choose=choose, seed=5, max_new_tokens=6, temperature=0.9
        )
        assert len(samples) == 1
        assert found.sample.text == plain_text(model, 5, temperature=0.9)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    ContinuationSampler(model, LETTERS, max_new_tokens=2).draw(prompt_ids(), 1, seed=3)
    assert torch.equal(state, torch.random.get_rng_state())  # the caller's random numbers are left alone


def test_batches_of_scoring_do_not_change_the_choice(model):
    choices = []
    for size in (1, 3, 16):
        found, samples = choose_continuation(
            model, LETTERS, PROMPT, num_samples=9, max_new_tokens=5, seed=2, batch_size=size
        )
        choices.append((found.index, found.kept, {k: round(v, 4) for k, v in found.shares.items()}))
        assert len(samples) == 9
    assert choices[0] == choices[1] == choices[2]


def test_every_family_is_weighed_by_its_own_columns(model):
    scorer = scorer_of(model, 4)
    samples = ContinuationSampler(model, LETTERS, max_new_tokens=4).draw(prompt_ids(), 5, seed=0)
    scored = score_samples(samples, prompt_ids(), TextScorer(scorer, LETTERS))
    for each in scored:
        score = next(scorer.scores([(prompt_ids(), list(each.token_ids))]))
        assert each.log_probs == pytest.approx({name: score.total(name) for name in scorer.columns}, abs=1e-5)
    for column in scorer.columns:
        found, own = choose_continuation(
            model, LETTERS, PROMPT, num_samples=5, choose="likelihood", by=column, seed=0, max_new_tokens=4
        )
        assert [each.token_ids for each in own] == [each.token_ids for each in samples]
        best = max(range(5), key=lambda i: (scored[i].log_probs[column], -i))
        assert found.index == best


def test_the_same_tokens_are_scored_once(monkeypatch):
    model = tiny_harness.gpt2(LETTERS)
    samples = [Sample("Hi", tuple(LETTERS("Hi")["input_ids"]))] * 4 + [Sample("", ())]
    rows, scores = [], ContinuationScorer.scores

    def counted(self, pairs):
        pairs = list(pairs)
        rows.extend(pairs)
        return scores(self, pairs)

    monkeypatch.setattr(ContinuationScorer, "scores", counted)
    found = score_samples(samples, prompt_ids(), TextScorer(ContinuationScorer(model), LETTERS))
    assert len(rows) == 1
    assert len({each.log_probs["lm"] for each in found[:4]}) == 1
    assert found[4].log_probs == {"lm": 0.0}


def test_a_continuation_ends_with_the_token_that_stops_it():
    model = tiny_harness.monarc(LETTERS)
    sampler = ContinuationSampler(model, LETTERS, stop=["\n", "so"], max_new_tokens=8)
    eos = LETTERS.eos_token_id
    for text, expected in {"it\nno": "it", "it so it": "it ", "\n": "", "it": "it"}.items():
        ids = LETTERS(text)["input_ids"]
        found = sampler.sample_of(ids)
        assert found.text == expected
        assert found.finished is (text != "it")
        stopped = LETTERS.decode(found.token_ids)
        assert stopped == (text if text == "it" else text[: len(expected) + (2 if "so" in text else 1)])
    ended = sampler.sample_of([*LETTERS("it")["input_ids"], eos, eos, eos])
    assert (ended.text, ended.finished, ended.token_ids[-1]) == ("it", True, eos)
    assert ended.token_ids.count(eos) == 1
    for drawn in sampler.draw(prompt_ids(), 12, seed=1):
        assert drawn.finished or len(drawn.token_ids) == 8
        assert "\n" not in drawn.text


def test_arguments_that_do_not_go_together():
    model = tiny_harness.monarc(LETTERS)
    with pytest.raises(ValueError, match="is by energy"):
        choose_continuation(model, LETTERS, PROMPT, choose="energy", by="lm")
    with pytest.raises(ValueError, match="do_sample=False"):
        choose_continuation(model, LETTERS, PROMPT, do_sample=False)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        choose_continuation(model, LETTERS, PROMPT, num_samples=0)
    with pytest.raises(ValueError, match="samples_at_once"):
        ContinuationSampler(model, LETTERS, samples_at_once=0)
    with pytest.raises(ValueError, match='got "energy"'):
        choose_continuation(tiny_harness.gpt2(LETTERS), LETTERS, PROMPT, choose="energy")
    assert set(CHOICES) == {"likelihood", "energy", "vote", "consistency"}
    found, _ = choose_continuation(model, LETTERS, PROMPT, choose="energy", num_samples=3, max_new_tokens=3)
    assert found.sample.energy is not None
