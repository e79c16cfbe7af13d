"""YAML that would end the process or fill its memory is refused by a sentence, wherever a user gives it."""

import pytest

from hf_elm.command_line import main
from hf_elm.commands.train import resolve_settings
from hf_elm.yaml_limits import refuse_endless_yaml


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: " + "[" * 100_000, "nested more than 100 levels"),
        ("- " * 100_000, "nested more than 100 levels"),
        ("{" * 101 + "}" * 101, "nested more than 100 levels"),
        (BOMB, "more than 100,000 values"),
    ],
)
def test_a_recipe_that_no_parser_should_build_is_refused(tmp_path, capsys, text, reason):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(text)
    assert main(["train", str(recipe)]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert str(recipe) in error
    assert "Traceback" not in error
    assert main(["train", f"train.lr_scheduler_kwargs={text}"]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["", "a: 1", "a: {b: [1, {c: 2}]}", "a: &a [1]\nb: *a", "a: &a [*a]", "[" * 99 + "]" * 99]
)
def test_recipes_of_people_pass(text):
    refuse_endless_yaml(text, "any")


def test_a_word_that_is_a_keys_default_may_be_written():
    """ "none" is a name of transformers there, and no missing value."""
    settings = resolve_settings(["train.report_to=none", "tokenizer.path=none"], "train")
    assert settings["train"]["report_to"] == "none"
    assert settings["tokenizer"]["path"] is None


def test_bytes_that_are_no_utf_8_are_refused_by_key(capsys):
    assert main(["train", "seed=\udcff"]) == 2
    assert "seed" in capsys.readouterr().err
