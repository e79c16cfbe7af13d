"""Pieces of the page: text is escaped, tokens keep their order and line ends, colours follow the values."""

import html
import re

import pytest

from hf_elm.demo.candidate_steps import CandidateStep
from hf_elm.demo.example_prompts import example_prompt
from hf_elm.demo.monarc_html import candidate_table, step_flow
from hf_elm.demo.page_html import escaped, shade, token_flow, token_text
from hf_elm.demo.request_limits import checked_number, room_for
from hf_elm.trainers.tokenization import build_tokenizer


HOSTILE = "<script>alert('x')</script> {{#each}} ${1+1} `a` \\n &amp;"


def visible(source):
    return html.unescape(re.sub(r"<[^>]*>", "", source))


def test_text_is_escaped_and_stays_readable():
    shown = escaped(HOSTILE)
    assert not set("<>{}$`\\'\"") & set(shown)
    assert html.unescape(shown) == HOSTILE
    flow = token_flow([repr(HOSTILE)], [1.0], [HOSTILE], prompt=HOSTILE)
    assert "<script" not in flow
    assert visible(flow) == HOSTILE * 2


def test_labels_give_the_text_back():
    for text in ("a", "'", '"', "\n", "\\", " the", "é"):
        assert token_text(repr(text)) == text
    assert token_text("<0xE2>") == "<0xE2>"


def test_tokens_follow_each_other():
    flow = token_flow([repr("a"), repr("\n"), repr("b c")], [0.0, -1.0, 0.25], ["t"] * 3, selected=1, prompt="P:")
    assert visible(flow) == "P:a↵\nb c"
    assert re.findall(r'data-step="(\d)" aria-pressed="(\w+)"', flow) == [
        ("0", "false"),
        ("1", "true"),
        ("2", "false"),
    ]
    colours = re.findall(r"rgba\((\d+), \d+, \d+, ([\d.]+)\)", flow)
    assert colours == [("217", "0.000"), ("37", "0.700"), ("217", "0.350")]  # the root of a quarter is a half
    assert shade(1.0, 0.0).endswith("0.000)")
    assert token_flow([], [], []).count("<button") == 0


def step(**fields):
    values = {
        "token_ids": [5, 9], "labels": ["'a'", "'<'"], "draws": [3, 1], "log_probs": [-0.5, -2.0], "energies": [-0.25, 0.5],
        "probabilities": [0.75, 0.25], "taken": 1, "log_z_lower": 0.125, "log_z_upper": 0.125, "text": "x<",
    }  # fmt: skip
    return CandidateStep(**{**values, **fields})


def test_candidates_of_a_step():
    shown = visible(candidate_table([step(), step()], 1).replace("</td>", "|"))
    assert "'a'|3|-0.500|-0.250|75.0%|" in shown
    assert "'<'|1|-2.000|+0.500|25.0%  ✓ taken|" in shown
    assert "Step 2 of 2: 4 draws" in shown
    assert "log Z = +0.1250 nats, summed" in shown
    assert "between +0.1250 and +0.5000" in candidate_table([step(log_z_upper=0.5)], 0)
    assert "at least +0.1250" in candidate_table([step(log_z_upper=float("inf"))], 0)
    assert step_flow([step()], 0, "P").count("<button") == 1


def test_numbers_of_a_form():
    assert checked_number("seed", 7.0) == 7
    assert isinstance(checked_number("new tokens", 7.0), int)
    with pytest.raises(ValueError, match="seed must be a whole number from 0 to"):
        checked_number("seed", "7")
    assert [room_for(60, 10, positions) for positions in (None, 64, 100)] == [10, 4, 10]


@pytest.mark.parametrize(
    ("recipe", "start"),
    [
        (None, "def main"),
        ("data: {corpus: stdlib}", "def main"),
        ("data: {corpus: texts/tinyshakespeare.txt}", "ROMEO:"),
        ("data: {corpus: wiki}", "The history"),
        ("data: [", "def main"),
        ("[]", "def main"),
    ],
)
def test_examples_follow_the_corpus(tmp_path, recipe, start):
    if recipe is not None:
        (tmp_path / "recipe.yaml").write_text(recipe)
    (tmp_path / "checkpoint-5").mkdir()
    for folder in (tmp_path, tmp_path / "checkpoint-5"):
        assert example_prompt(str(folder), build_tokenizer("byte"), "start").startswith(start)
    assert example_prompt(str(tmp_path), build_tokenizer("char", ["xyz"]), "start") == ""
