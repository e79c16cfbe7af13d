"""Files and names that a fuzz run found to end in a traceback: each is refused in one line of bearable length."""

import json

import pytest

from hf_elm.command_line import main
from hf_elm.trainers.checkpoint_folders import why_unusable
from tests.hub.hub_models import make_model, make_tokenizer


DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


def refused(capsys, *arguments):
    """The one line in which the command refuses."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("hf-elm")]
    assert "Traceback" not in error
    assert len(lines) == 1
    assert len(lines[0]) < 3200
    return lines[0]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "monarc"}')
    return tmp_path


@pytest.mark.parametrize("content", [DEEP.encode(), b"[" * 100_000, b"\xff\xfe", b"", b"7"])
def test_a_config_that_is_no_json_object_is_named(folder, capsys, content):
    (folder / "config.json").write_bytes(content)
    assert "config.json is not a JSON object" in refused(capsys, "generate", f"checkpoint={folder}", "prompt=a")


@pytest.mark.parametrize(
    "content", [DEEP, "[]", '{"base_model_name_or_path": 7}', '{"base_model_name_or_path": "a\\u0000b"}']
)
def test_an_adapter_whose_base_cannot_be_told_is_named(tmp_path, capsys, content):
    (tmp_path / "adapter_config.json").write_text(content)
    error = refused(capsys, "evaluate", f"checkpoint={tmp_path}")
    assert "adapter_config.json" in error
    assert str(tmp_path) in error


@pytest.mark.parametrize("content", [DEEP, "- a", '{"seed": [1', "a: " + "[" * 5000])
def test_the_recipe_of_a_run_is_named_when_it_is_damaged(folder, capsys, content):
    (folder / "recipe.yaml").write_text(content)
    assert "recipe.yaml" in refused(capsys, "evaluate", f"checkpoint={folder}")


def test_a_name_that_is_too_long_is_refused_in_one_line(folder, capsys):
    name = "x" * 300
    assert name in refused(capsys, "evaluate", f"checkpoint={folder}", f"output={name}.json")
    assert "neither a file nor one of the bundled recipes" in refused(capsys, "train", name)


def test_a_value_of_many_pages_is_not_quoted_whole(capsys):
    error = refused(capsys, "train", f"seed={list(range(20_000))}")
    assert "[0, 1, 2" in error
    assert "must be of type int" in error


@pytest.mark.parametrize("name", ["trainer_state.json", "files.json"])
@pytest.mark.parametrize("content", [DEEP, "[" * 100_000, "[1]", None])
def test_a_checkpoint_with_a_damaged_record_is_no_checkpoint(tmp_path, name, content):
    for each in ("trainer_state.json", "files.json"):
        (tmp_path / each).write_text("{}")
    assert why_unusable(tmp_path) is None
    if content is None:
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text(content)
    reason = why_unusable(tmp_path)
    assert (reason is None) == (name == "trainer_state.json" and content == "[1]")
    assert reason is None or name in reason


def test_a_published_index_that_is_nested_too_deep_is_named(folder, capsys):
    (folder / "config.json").write_text(json.dumps({"model_type": "monarc", "auto_map": {}}))
    (folder / "model.safetensors.index.json").write_text(DEEP)
    (folder / "model-1.safetensors").write_bytes(b"")
    assert "model.safetensors.index.json is not valid JSON" in refused(capsys, "publish", folder, "a/b", "--dry-run")


def test_a_token_id_that_would_fill_the_memory_is_named(tmp_path, capsys):
    """The library would list all ids in between."""
    make_model("monarc").save_pretrained(tmp_path)
    make_tokenizer("monarc").save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"][next(iter(content["model"]["vocab"]))] = 2**31
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    error = refused(capsys, "generate", f"checkpoint={tmp_path}", "prompt=a")
    assert f"token id {2**31}" in error
    assert str(tmp_path) in error
