"""How many tokens a model saw at once: from the recipe of its run, the record of a quickstart, or its configuration."""

import json

import pytest
import torch

from hf_elm.trained_windows import Window, common_window, config_positions, row_length, trained_window
from tests.hf_elm import tiny_harness as tiny


LETTERS = tiny.letters()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("windows")
    for name, make in (("monarc", tiny.monarc), ("nano", tiny.nano_ebm)):
        tiny.saved(make(LETTERS, dtype=torch.float32), LETTERS, folder / name)
        (folder / name / "checkpoint-2").mkdir()
    tiny.saved(tiny.gpt2(LETTERS), LETTERS, folder / "quickstart" / "lm")
    (folder / "quickstart" / "quickstart.json").write_text(json.dumps({"sequence_length": 24}))
    (folder / "monarc" / "recipe.yaml").write_text("data: {sequence_length: 16}\n")
    return folder


def test_where_the_row_length_is_found(folder):
    assert row_length(str(folder / "monarc")) == row_length(str(folder / "monarc" / "checkpoint-2")) == 16
    assert row_length(str(folder / "quickstart" / "lm")) == 24
    assert row_length(str(folder / "nano")) is None
    assert row_length("user/name") is None
    assert config_positions(str(folder / "monarc")) == tiny.POSITIONS
    assert config_positions(str(folder / "quickstart" / "lm")) == tiny.POSITIONS


@pytest.mark.parametrize(
    "content", ["", "[1]", "data: 3", "data: {sequence_length: long}", "data: {sequence_length: 1}", "a: [", "\x00"]
)
def test_other_recipes_tell_nothing(folder, tmp_path, content):
    (tmp_path / "recipe.yaml").write_text(content)
    assert row_length(str(tmp_path)) is None


def test_the_window_of_a_model(folder, tmp_path):
    monarc, nano = str(folder / "monarc"), str(folder / "nano")
    assert trained_window(monarc) == Window(16, f"the rows that {monarc} was trained on")
    assert trained_window(nano) == Window(tiny.POSITIONS, f"the positions of {nano}")
    longer = tiny.saved(tiny.gpt2(LETTERS), LETTERS, tmp_path / "longer")
    (tmp_path / "longer" / "recipe.yaml").write_text(
        "data: {sequence_length: 4096}\n"
    )  # not the recipe of these weights
    assert trained_window(longer).tokens == tiny.POSITIONS
    with pytest.raises(FileNotFoundError, match="does not exist"):
        trained_window(str(folder / "none"))


def test_one_window_for_all(folder):
    monarc, nano = str(folder / "monarc"), str(folder / "nano")
    assert common_window([nano, monarc]) == trained_window(monarc)
    assert common_window([nano, monarc], 20) == Window(20, "as asked for")
    assert common_window([nano, monarc], 65).tokens == tiny.POSITIONS
