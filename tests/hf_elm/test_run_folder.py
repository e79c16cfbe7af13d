"""Output folders: what may be claimed, atomic writes, nothing overwritten."""

import errno
import os

import pytest

from hf_elm.run_folder import (
    claim,
    comparable,
    dump_recipe,
    first_difference,
    new_folder,
    write_atomically,
    write_json,
)


SETTINGS = {"seed": 0, "resume": False, "train": {"max_steps": 10, "learning_rate": 1e-5, "output_dir": "x"}}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "recipe.yaml").write_text(dump_recipe(SETTINGS))
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    return tmp_path


def changed(**train):
    return SETTINGS | {"train": SETTINGS["train"] | train}


def test_a_new_or_empty_folder_is_free_and_stays_untouched(tmp_path):
    claim(tmp_path, SETTINGS, resume=False)
    claim(tmp_path / "new", SETTINGS, resume=True)
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_folder_or_file_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    for resume in (False, True):
        with pytest.raises(FileExistsError, match="no run of ours; choose another output_dir"):
            claim(tmp_path, SETTINGS, resume)
        with pytest.raises(FileExistsError, match="is a file"):
            claim(tmp_path / "thesis.tex", SETTINGS, resume)


def test_the_same_run_needs_resume(run):
    with pytest.raises(FileExistsError, match="resume=true or choose another output_dir"):
        claim(run, SETTINGS, resume=False)
    claim(run, SETTINGS | {"resume": True}, resume=True)


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        (changed(max_steps=20), "train.max_steps is 10 there and 20 here"),
        (changed(warmup_steps=3), "train.warmup_steps is None there and 3 here"),
        (SETTINGS | {"seed": 1}, "seed is 0 there and 1 here"),
    ],
)
def test_another_recipe_is_refused_with_the_differing_key(run, settings, difference):
    with pytest.raises(ValueError, match=f"another recipe: {difference}"):
        claim(run, settings, resume=True)
    with pytest.raises(FileExistsError, match=f"another run .{difference}"):
        claim(run, settings, resume=False)


def test_settings_survive_the_file():
    odd = {"a": {"rate": 1e-5, "text": "no", "none": None, "list": [1, "x"], "unicode": "ä: {", "big": 100000}}
    assert first_difference(comparable(odd), odd) is None


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "recipe.yaml"
    write_atomically(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*recipe\.yaml'"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_written_whole_with_ordinary_permissions(tmp_path):
    write_json(tmp_path / "deep" / "a.json", {"x": 1})
    assert (tmp_path / "deep" / "a.json").read_text() == '{\n  "x": 1\n}\n'
    (tmp_path / "other").write_text("")
    assert (tmp_path / "deep" / "a.json").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    def fail_half_way():
        with new_folder(tmp_path / "out", "OUT") as folder:
            (folder / "a").write_text("a")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "out", "OUT") as folder:
        (folder / "a").write_text("a")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(FileExistsError, match=r"OUT="), new_folder(tmp_path / "out", "OUT"):
        pass
    assert (tmp_path / "out" / "a").read_text() == "a"


def test_a_run_that_ended_before_its_first_log_holds_no_folder(run):
    (run / "metrics.jsonl").unlink()
    claim(run, changed(max_steps=20), resume=False)


def test_a_moved_run_can_be_resumed(run):
    claim(run, changed(output_dir="elsewhere/"), resume=True)


@pytest.mark.parametrize("damage", ["train: [", "just text", ""])
def test_a_damaged_recipe_is_named(run, damage):
    (run / "recipe.yaml").write_text(damage)
    with pytest.raises(ValueError, match=r"recipe\.yaml is damaged"):
        claim(run, SETTINGS, resume=True)
