"""Scores of a text: those of `evaluate_elm` in total, of the model token by token, and of brute force."""

import math

import pytest
import torch
from torch.testing import assert_close

from hf_elm.demo.monarc_html import score_flow, score_table, score_totals
from hf_elm.demo.shared_model import SharedModel
from hf_elm.demo.token_scores import score_text
from hf_elm.evaluation import evaluate_elm
from hf_elm.trainers.tokenization import build_tokenizer
from tests.hf_elm.tiny_harness import letters, monarc


TEXT = "joy is tiny, \nor not"
OPTIONS = {"exact": {}, "sampled": {"method": "sampled", "num_samples": 6, "exact_top": 5}}


@pytest.fixture(scope="module")
def shared():
    tokenizer = letters()
    return SharedModel(monarc(tokenizer), tokenizer)


def ids_of(shared, text=TEXT):
    return shared.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]


def test_every_token_is_scored_as_by_brute_force(shared):
    """1e-9: float64, sums in another order."""
    scores, ids = score_text(shared, TEXT), ids_of(shared)
    vocabulary = torch.arange(64).view(1, -1, 1).expand(1, -1, ids.shape[1])
    every = shared.model.score_candidates(ids, vocabulary)
    log_z = torch.logsumexp(every.log_probs - every.energies, 1)[0, 1:]
    assert_close(scores.lm, every.token_log_probs[0], atol=1e-9, rtol=0)
    assert_close(scores.energies, every.token_energies[0], atol=1e-9, rtol=0)
    assert_close(scores.log_z[1:], log_z, atol=1e-9, rtol=0)
    assert_close(scores.gain[1:], -scores.energies[1:] - log_z, atol=1e-9, rtol=0)
    assert scores.labels == [repr(character) for character in TEXT]
    assert scores.is_exact


def test_totals_are_those_of_the_evaluation(shared):
    scores = score_text(shared, TEXT)
    record = evaluate_elm(
        shared.model, [{"input_ids": ids_of(shared)[0].tolist()}], tokenizer=shared.tokenizer, progress=False
    )
    assert scores.num_scored == record.num_tokens
    assert scores.num_bytes == record.num_bytes
    assert scores.nll("lm") == pytest.approx(record.lm_nll, abs=1e-9)
    assert scores.nll("elm_lower") == pytest.approx(record.elm_nll, abs=1e-9)
    assert scores.bits_per_byte("elm_lower") == pytest.approx(record.elm_bits_per_byte, abs=1e-9)


def test_a_longer_text_is_read_in_windows(shared):
    """Tokens 1 to 7 in the first window of 8, then four at a time, each with the tokens of a window before their end."""
    scores, whole = score_text(shared, TEXT, 8), score_text(shared, TEXT, len(TEXT))
    assert (scores.window, whole.window) == (8, None)
    ids = ids_of(shared)
    for start, end in ((1, 8), (8, 12), (12, 16), (16, 20)):
        part = shared.model.score_candidates(ids[:, end - 8 : end], ids[:, end - 8 : end].unsqueeze(1))
        own = slice(start - end + 8, 8)
        assert_close(scores.lm[start:end], part.token_log_probs[0, own], atol=1e-9, rtol=0)
        assert_close(scores.energies[start:end], part.token_energies[0, own], atol=1e-9, rtol=0)
    assert (scores.lm[8:] - whole.lm[8:]).abs().max() > 1e-6
    assert "windows of 8 tokens" in score_totals(scores)
    assert "windows" not in score_totals(whole)


def test_an_interval_has_its_ends_in_order(shared):
    scores = score_text(shared, TEXT, **OPTIONS["sampled"])
    assert not scores.is_exact
    assert (scores.elm_lower <= scores.elm_upper).all()
    assert scores.nll("elm_upper") < scores.nll("elm_lower")
    totals = score_totals(scores)
    assert "at least" in totals
    assert f"{scores.nll('elm_upper'):.4f}" in totals
    assert f"{scores.nll('elm_lower'):.4f}" in totals


def test_bytes_of_characters_of_several_bytes():
    """The first token is a part of a character: its bytes are not counted."""
    tokenizer = build_tokenizer("byte")
    scores = score_text(SharedModel(monarc(tokenizer, dtype=torch.float32), tokenizer), "é€a")
    assert (scores.num_scored, scores.num_bytes) == (5, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "text is empty"), ("z", "from 2 to 1,024"), ("z" * 64, "64 positions"), (7, "must be text")],
)
def test_refuses(shared, text, message):
    with pytest.raises(ValueError, match=message):
        score_text(shared, text)


@pytest.mark.parametrize("colour", ["gain", "energies", "lm"])
def test_the_page_shows_what_was_computed(shared, colour):
    scores = score_text(shared, TEXT)
    flow = score_flow(scores, colour)
    assert flow.count("<button") == len(TEXT)
    assert f"E {scores.energies[3].item():+.3f}" in flow
    sign = {"gain": -scores.gain, "energies": scores.energies, "lm": -scores.lm}[colour]
    blue = flow.split("<p class")[0].count("rgba(37, 99, 235")
    assert blue == int((sign < 0).sum())  # blue is the likelier side
    rows = score_table(scores)
    assert rows.count("<tr>") == len(TEXT)  # the header and every token but the first
    assert f"{scores.lm[5].item():.4f}" in rows
    assert math.isclose(sum(scores.gain[1:]).item() / scores.num_scored, scores.nll("lm") - scores.nll("elm_lower"))
