"""A continuation with its candidates: the tokens of `generate`, the energies of `score_candidates`, log Z by brute force."""

import copy
import itertools
import math

import pytest
import torch

from hf_elm import log_z_bounds as bounds
from hf_elm.demo import candidate_steps as module
from hf_elm.demo.candidate_steps import candidate_steps
from hf_elm.demo.shared_model import SharedModel
from tests.hf_elm.tiny_harness import POSITIONS, letters, monarc


PROMPT = "roy is"


@pytest.fixture(scope="module")
def shared():
    tokenizer = letters()
    return SharedModel(monarc(tokenizer, energy_adapter_rank=2), tokenizer)


@pytest.fixture(params=[True, False], ids=["whole vocabulary", "draws only"])
def exact(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(module, "AUTO_EXACT_VOCAB", 10)
    return request.param


def prompt_ids(shared):
    return shared.tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(("num_candidates", "temperature"), [(8, 1.0), (3, 0.7), (2, 1.6)])
def test_tokens_are_those_of_generate(shared, exact, num_candidates, temperature):
    steps = list(candidate_steps(shared, PROMPT, num_candidates, temperature, 12, seed=5))
    torch.manual_seed(5)
    ids = prompt_ids(shared)
    out = shared.model.generate(
        ids, max_new_tokens=12, do_sample=True, top_k=0, temperature=temperature, num_candidates=num_candidates,
        return_dict_in_generate=True,
    )  # fmt: skip
    expected = out.sequences[0, ids.shape[1] :]
    assert [step.token_id for step in steps] == expected.tolist()
    assert [step.energy for step in steps] == pytest.approx(out.energies[0].tolist(), abs=1e-9)
    assert steps[-1].text == shared.tokenizer.decode(expected, skip_special_tokens=True)
    assert [step.label for step in steps] == [repr(shared.tokenizer.decode([token])) for token in expected]


def test_energies_and_log_probs_are_those_of_score_candidates(shared, exact):
    """1e-9: float64, sums in another order."""
    ids = prompt_ids(shared)
    for step in candidate_steps(shared, PROMPT, 16, 0.8, 5, seed=1):
        row = torch.cat([ids, torch.tensor([[step.token_id]])], 1)
        candidates = row[:, None].repeat(1, len(step.token_ids), 1)
        candidates[0, :, -1] = torch.tensor(step.token_ids)
        scores = shared.model.score_candidates(row, candidates)
        assert step.energies == pytest.approx(scores.energies[0, :, -1].tolist(), abs=1e-9)
        assert step.log_probs == pytest.approx(scores.log_probs[0, :, -1].tolist(), abs=1e-9)
        ids = row


def test_probabilities_follow_from_draws_and_energies(shared, exact):
    """1e-7: the numbers of draws have float32 logarithms."""
    spread = 0
    for step in candidate_steps(shared, PROMPT, 11, 1.3, 8):
        weights = [draws * math.exp(-energy) for draws, energy in zip(step.draws, step.energies, strict=True)]
        assert sum(step.draws) == 11
        assert sum(step.probabilities) == pytest.approx(1, abs=1e-9)
        assert step.probabilities == pytest.approx([weight / sum(weights) for weight in weights], abs=1e-7)
        assert step.probabilities == sorted(step.probabilities, reverse=True)
        assert len(set(step.token_ids)) == len(step.token_ids)
        spread = max(spread, max(step.energies) - min(step.energies))
    assert spread > 0.1  # equal energies would hide errors


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_z_of_a_small_vocabulary_is_the_sum_over_it(shared, temperature):
    ids = prompt_ids(shared)
    vocabulary = torch.arange(len(shared.tokenizer))
    for step in candidate_steps(shared, PROMPT, 4, temperature, 4):
        row = torch.cat([ids, torch.tensor([[step.token_id]])], 1)
        candidates = row[:, None].repeat(1, len(vocabulary), 1)
        candidates[0, :, -1] = vocabulary
        scores = shared.model.score_candidates(row, candidates)
        log_p = (scores.log_probs[0, :, -1] / temperature).log_softmax(-1)
        expected = torch.logsumexp(log_p - scores.energies[0, :, -1], 0).item()
        assert step.is_exact
        assert step.log_z_lower == pytest.approx(expected, abs=1e-9)
        ids = row


def test_log_z_of_a_large_vocabulary_is_bounded_by_the_draws(shared, monkeypatch):
    monkeypatch.setattr(module, "AUTO_EXACT_VOCAB", 10)
    for step in candidate_steps(shared, PROMPT, 9, 1.0, 6):
        draws = torch.tensor(
            [e for e, n in zip(step.energies, step.draws, strict=True) for _ in range(n)], dtype=torch.float64
        )
        assert step.log_z_lower == pytest.approx(bounds.jensen_lower(draws).item(), abs=1e-9)
        assert step.log_z_upper == pytest.approx(bounds.fenchel_leave_one_out_upper(draws).item(), abs=1e-9)
        assert step.log_z_lower <= step.log_z_upper
    (alone,) = candidate_steps(shared, PROMPT, 1, 1.0, 1)
    assert alone.probabilities == [1.0]
    assert alone.log_z_lower == pytest.approx(-alone.energy)
    assert math.isinf(alone.log_z_upper)


def test_visitors_do_not_disturb_each_other(shared):
    """Two requests step by step in turns give what each gives alone, and leave the program's random numbers as they were."""
    alone = [[step.token_id for step in candidate_steps(shared, PROMPT, 6, 1.0, 10, seed)] for seed in (1, 2)]
    torch.manual_seed(99)
    state = torch.get_rng_state()
    together = itertools.zip_longest(*(candidate_steps(shared, PROMPT, 6, 1.0, 10, seed) for seed in (1, 2)))
    columns = zip(*together, strict=True)
    assert [[step.token_id for step in column if step] for column in columns] == alone
    assert torch.equal(torch.get_rng_state(), state)
    assert alone[0] != alone[1]


def test_ends_at_the_last_position_and_at_the_end_token(shared):
    prompt = "z" * (POSITIONS - 3)
    assert len(list(candidate_steps(shared, prompt, max_new_tokens=50))) == 3
    free = list(itertools.islice(candidate_steps(shared, PROMPT, seed=3), 6))
    ending = SharedModel(shared.model, copy.deepcopy(shared.tokenizer))
    ending.tokenizer.eos_token = shared.tokenizer.convert_ids_to_tokens(free[4].token_id)
    first = [step.token_id for step in free].index(free[4].token_id)
    assert [step.token_id for step in candidate_steps(ending, PROMPT, seed=3)] == [s.token_id for s in free[:first]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_candidates": 0}, "number of candidates must be a whole number from 1 to 64, got 0"),
        ({"num_candidates": 2.5}, "number of candidates must be a whole number"),
        ({"num_candidates": True}, "number of candidates must be a whole number"),
        ({"temperature": 0}, "temperature must be a number from 0.05 to 5, got 0"),
        ({"temperature": float("nan")}, "temperature must be a number"),
        ({"temperature": None}, "temperature must be a number"),
        ({"max_new_tokens": 257}, "new tokens must be a whole number from 1 to 256"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"prompt": "z" * 20_001}, "prompt has 20,001 characters; at most 20,000"),
        ({"prompt": "z" * 65}, "the model has 64 positions"),
        ({"prompt": None}, "prompt must be text, got NoneType"),
        ({"prompt": "é"}, "characters that the model's vocabulary lacks"),
    ],
)
def test_refuses(shared, arguments, message):
    with pytest.raises(ValueError, match=message):
        next(candidate_steps(shared, **{"prompt": PROMPT, **arguments}))
