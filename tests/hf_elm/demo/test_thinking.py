"""Thinking for the page: the prediction by steps as the model reports it, and the tokens of `generate`."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from hf_elm.demo.descent_figure import plot_descent
from hf_elm.demo.nano_ebm_html import prediction_table, thinking_flow, token_panel
from hf_elm.demo.shared_model import SharedModel
from hf_elm.demo.thinking import think_about, thinking_tokens
from tests.hf_elm.tiny_harness import POSITIONS, letters, nano_ebm


PROMPT = "roy is"


@pytest.fixture(scope="module")
def shared():
    tokenizer = letters()
    return SharedModel(nano_ebm(tokenizer), tokenizer)


def ids_of(shared, text=PROMPT):
    return shared.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]


def test_the_prediction_is_the_models(shared):
    """1e-9: float64, the same operations on one position or on all of them."""
    trajectory, landscape = think_about(shared, PROMPT, 3, num_tokens=5, grid=5)
    with torch.no_grad():
        out = shared.model(ids_of(shared), think_steps=3, output_energies=True, output_trajectory=True)
    probs = out.trajectory[:, 0, -1].softmax(-1)
    assert_close(trajectory.energies, out.energies[:, 0, -1], atol=1e-9, rtol=0)
    tokens = [shared.tokenizer.convert_tokens_to_ids(label[1:-1]) for label in trajectory.labels]
    assert_close(trajectory.probs, probs[:, tokens], atol=1e-9, rtol=0)
    assert set(probs[-1].topk(2).indices.tolist()) <= set(tokens)
    assert (trajectory.energies.diff() < 0).all()  # every step of size up to 1 descends
    assert landscape.energies.shape == (5, 5)
    assert_close(landscape.path_energies, trajectory.energies, atol=1e-9, rtol=0)


@pytest.mark.parametrize("use_thinking", [True, False])
@pytest.mark.parametrize(("steps", "top_k", "temperature"), [(2, 0, 1.0), (3, 7, 0.8)])
def test_tokens_are_those_of_generate(shared, use_thinking, steps, top_k, temperature):
    tokens = list(thinking_tokens(shared, PROMPT, steps, top_k, temperature, 12, 4, use_thinking))
    torch.manual_seed(4)
    ids = ids_of(shared)
    out = shared.model.generate(
        ids, max_new_tokens=12, do_sample=True, top_k=0, temperature=temperature, use_thinking=use_thinking,
        think_steps=steps, think_topk=top_k,
    )[0, ids.shape[1] :]  # fmt: skip
    assert [token.label for token in tokens] == [repr(shared.tokenizer.decode([one])) for one in out]
    assert tokens[-1].text == shared.tokenizer.decode(out, skip_special_tokens=True)
    assert {len(token.energies) for token in tokens} == {steps + 1 if use_thinking else 1}
    assert all((token.fall > 0) == use_thinking for token in tokens)
    if top_k:
        assert all(len(token.labels) <= top_k for token in tokens)


def test_energies_with_a_cache_are_those_of_the_whole_row(shared):
    tokens = list(thinking_tokens(shared, PROMPT, 2, max_new_tokens=6))
    row = ids_of(shared, PROMPT + tokens[-1].text)
    with torch.no_grad():
        out = shared.model(row, think_steps=2, output_energies=True, output_trajectory=True)
    first = row.shape[1] - len(tokens) - 1
    for place, token in enumerate(tokens, start=first):
        drawn = row[0, place + 1]
        assert_close(token.energies, out.energies[:, 0, place], atol=1e-9, rtol=0)
        assert token.prob_after == pytest.approx(out.trajectory[-1, 0, place].softmax(-1)[drawn].item(), abs=1e-9)
        assert token.prob_before == pytest.approx(out.s1_logits[0, place].softmax(-1)[drawn].item(), abs=1e-9)


def test_visitors_do_not_disturb_each_other(shared):
    alone = [[token.label for token in thinking_tokens(shared, PROMPT, 2, seed=s, max_new_tokens=8)] for s in (1, 2)]
    together = itertools.zip_longest(*(thinking_tokens(shared, PROMPT, 2, seed=s, max_new_tokens=8) for s in (1, 2)))
    columns = zip(*together, strict=True)
    assert [[token.label for token in column if token] for column in columns] == alone


def test_ends_at_the_last_position(shared):
    assert len(list(thinking_tokens(shared, "z" * (POSITIONS - 2), 1, max_new_tokens=20))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"think_steps": 0}, "thinking steps must be a whole number from 1 to 16, got 0"),
        ({"think_steps": 17}, "thinking steps must be"),
        ({"top_k": -1}, "top k must be"),
        ({"prompt": " "}, "prompt is empty"),
        ({"prompt": "z" * 64}, "the model has 64 positions"),
    ],
)
def test_refuses(shared, arguments, message):
    arguments = {"prompt": PROMPT, "think_steps": 2, **arguments}
    with pytest.raises(ValueError, match=message):
        think_about(shared, **arguments)
    with pytest.raises(ValueError, match=message):
        next(thinking_tokens(shared, **arguments))


def test_the_page_shows_what_was_computed(shared):
    trajectory, _ = think_about(shared, PROMPT, 2, num_tokens=4, grid=3)
    shown = prediction_table(trajectory.labels, trajectory.probs, trajectory.energies)
    assert shown.count("<tr>") == 5
    assert f"{trajectory.probs[0, 0]:.2%}" in shown
    assert f"{trajectory.probs[-1, 0]:.2%}" in shown
    assert f"{(trajectory.energies[-1] - trajectory.energies[0]).item():+.4g}" in shown
    tokens = list(thinking_tokens(shared, PROMPT, 2, max_new_tokens=3))
    assert thinking_flow(tokens, 1, PROMPT).count("<button") == 3
    assert "✓ taken" in token_panel(tokens, 0) or tokens[0].label not in tokens[0].labels


def test_the_descent_is_drawn_from_its_numbers(shared):
    pytest.importorskip("matplotlib")
    trajectory, _ = think_about(shared, PROMPT, 3, num_tokens=4, grid=3)
    left, right = plot_descent(trajectory).axes
    (line,) = left.lines
    assert line.get_ydata() == pytest.approx((trajectory.energies - trajectory.energies[0]).tolist())
    assert len(right.lines) == 4
    assert right.lines[0].get_ydata() == pytest.approx(trajectory.probs[:, 0].tolist())
