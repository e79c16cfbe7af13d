"""`hf-elm publish` without a hub: what it refuses and why, its dry run, cards that are never overwritten, no pickle opened."""

import json
import os
import pickle
import re
import shutil

import pytest
import torch

from hf_elm.card_files import carry_over, has_users_card, new_card
from hf_elm.command_line import main
from hf_elm.hub_contents import check_contents, hub_files, is_run_folder
from hf_elm.model_cards.card_text import is_own_card
from tests.hub.hub_models import FAMILIES, make_model, make_tokenizer


class Bomb:
    """Unpickling it leaves a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders as save_pretrained leaves them, by family."""
    root = tmp_path_factory.mktemp("saved")
    for family in FAMILIES:
        make_model(family).save_pretrained(root / family)
        make_tokenizer(family).save_pretrained(root / family)
    return root


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to spoil."""
    shutil.copytree(saved / "monarc", tmp_path / "model")
    return tmp_path / "model"


def fails(capsys, arguments, *parts):
    """Exit status 2 and one line on stderr that holds ``parts``."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-elm")]
    assert len(lines) == 1
    for part in parts:
        assert part in lines[0]


def rewrite(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.slow
def test_a_dry_run_lists_every_file_checks_the_folder_and_changes_nothing(folder, capsys):
    (folder / "README.md").write_text("# mine\n")
    before = {path: path.read_bytes() for path in folder.rglob("*")}
    assert main(["publish", str(folder), "user/name", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for path in folder.iterdir():
        assert f"  {path.name} " in printed
    assert re.search(r"^  README\.md +7 B$", printed, re.MULTILINE)
    assert f"{len(before)} files" in printed
    assert "dry run: nothing was sent" in printed
    assert {path: path.read_bytes() for path in folder.rglob("*")} == before


def test_wrong_arguments_are_one_clear_line(folder, tmp_path, capsys):
    for arguments, *parts in [
        ([folder], "DIR user/name"),
        ([tmp_path / "nowhere", "user/name"], "nowhere", "no folder"),
        ([folder, "name"], "user/name", '"name"'),
        ([folder, "a/b/c"], "user/name"),
        ([folder, "user/na me"], "user/name"),
        ([folder, "user/name", "--privat"], "private"),
        ([folder, "user/name", "private=perhaps"], "private"),
        ([tmp_path, "user/name", "--dry-run"], "config.json"),
        ([folder, "user/name", "base=user/base"], "base=user/base", "holds a model"),
        ([folder, "user/name", "merge=true"], "merge=true", "holds a model"),
    ]:
        fails(capsys, ["publish", *arguments], *parts)


def test_an_adapter_says_where_its_base_is(folder, tmp_path, capsys):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": str(folder)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    refused = [adapter, "user/name", "--dry-run"]
    fails(capsys, ["publish", *refused], str(folder), "base=user/name", "merge=true")
    fails(capsys, ["publish", *refused, f"base={folder}"], str(folder), "no Hub id")
    fails(capsys, ["publish", *refused, "base=user/base"], "adapter_model.safetensors")
    (adapter / "adapter_model.bin").write_bytes(b"pickle")
    fails(capsys, ["publish", *refused, "base=user/base"], "pickles")
    (adapter / "adapter_model.bin").unlink()
    rewrite(adapter / "adapter_config.json", base_model_name_or_path=str(tmp_path / "gone"))
    fails(capsys, ["publish", *refused, "base=user/base"], "gone", "does not exist")


def test_without_a_token_nothing_is_computed(folder, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    fails(capsys, ["publish", folder, "user/name"], "hf auth login", "HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_any")
    fails(capsys, ["publish", folder, "user/name"], "HF_HUB_OFFLINE")  # as it is set for all tests


def spoil_link(folder):
    (folder / "notes.txt").symlink_to("/etc/hostname")


def spoil_linked_folder(folder):
    (folder / "more").symlink_to(folder.parent)


def spoil_pickle_beside(folder):
    (folder / "pytorch_model.bin").write_bytes(b"pickle")


def spoil_no_weights(folder):
    (folder / "model.safetensors").unlink()


def spoil_index(folder):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))


def spoil_auto_map(folder):
    rewrite(folder / "config.json", auto_map={"AutoConfig": "../evil.Config"})


def spoil_foreign_auto_map(folder):
    rewrite(folder / "config.json", auto_map={"AutoConfig": "other/repo--configuration_monarc.MonArcConfig"})


def spoil_missing_auto_map(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config))


def spoil_import(folder):
    path = folder / "residual_energy.py"
    path.write_text(f"import requests\n{path.read_text()}")


def spoil_relative_import(folder):
    path = folder / "residual_energy.py"
    path.write_text(f"from ..outside import x\n{path.read_text()}")


def spoil_sibling(folder):
    (folder / "token_layout.py").unlink()


def spoil_tokenizer_code(folder):
    rewrite(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["/srv/evil.Tokenizer", None]})


def spoil_modules(folder):
    (folder / "modules.json").write_text(json.dumps([{"path": "../outside"}]))


def spoil_config(folder):
    (folder / "config.json").write_text("{")


def spoil_family(folder):
    rewrite(folder / "config.json", model_type="llama")


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (spoil_link, ("notes.txt", "/etc/hostname", "link")),
        (spoil_linked_folder, ("more", "link")),
        (spoil_pickle_beside, ("pytorch_model.bin", "pickle", "hf-elm convert")),
        (spoil_no_weights, ("model.safetensors",)),
        (spoil_index, ("../secret.safetensors",)),
        (spoil_auto_map, ("../evil.Config", "hf-elm export")),
        (spoil_foreign_auto_map, ("other/repo--", "hf-elm export")),
        (spoil_missing_auto_map, ("auto_map", "hf-elm export")),
        (spoil_import, ("requests", "residual_energy.py, line 1")),
        (spoil_relative_import, ("residual_energy.py, line 1",)),
        (spoil_sibling, ("token_layout.py",)),
        (spoil_tokenizer_code, ("evil.Tokenizer",)),
        (spoil_modules, ("../outside",)),
        (spoil_config, ("config.json",)),
        (spoil_family, ("llama",)),
    ],
)
def test_what_must_not_leave_is_refused_by_name(folder, capsys, spoil, parts):
    spoil(folder)
    fails(capsys, ["publish", folder, "user/name", "--dry-run"], *parts)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pickle_is_never_opened(saved, tmp_path, capsys, family):
    folder, trace = tmp_path / "model", tmp_path / "trace"
    shutil.copytree(saved / family, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(trace)))
    remedy = ("pytorch_model.bin", "hf-elm convert")
    fails(capsys, ["publish", folder, "user/name", "--dry-run"], *remedy)
    fails(capsys, ["export", folder, tmp_path / "out"], *remedy)
    fails(capsys, ["evaluate", f"checkpoint={folder}", "data.corpus=stdlib", "data.max_bytes=1000"], *remedy)
    if family != "m2_bert":
        fails(capsys, ["generate", f"checkpoint={folder}", "prompt=x"], *remedy)
    torch.save({"lm.weight": Bomb(trace)}, folder / "pytorch_model.bin")
    fails(capsys, ["export", folder, tmp_path / "out"], *remedy)
    assert not trace.exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_code_of_every_family_may_be_published(saved, family):
    names = [file.name for file in check_contents(saved / family)]
    assert f"modeling_{family}.py" in names
    assert names == sorted(names)


def test_hidden_files_stay_at_home_and_sizes_are_true(folder):
    for name in (".secret", "__pycache__/x.pyc", ".git/config", "pictures/.hidden"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    (folder / ".gitattributes").write_text("x")
    (folder / "pictures" / "a.png").write_bytes(b"12345")
    files = {file.name: file.size for file in hub_files(folder)}
    assert files["pictures/a.png"] == 5
    assert ".gitattributes" in files
    assert not [name for name in files if "secret" in name or "pyc" in name or ".git/" in name or "hidden" in name]


@pytest.mark.parametrize(
    "name", ["recipe.yaml", "trainer_state.json", "training_args.bin", "checkpoint-3/config.json"]
)
def test_a_run_is_told_from_a_folder_to_publish_as_it_is(folder, name):
    assert not is_run_folder(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    assert is_run_folder(folder)


def test_a_link_at_the_top_of_a_run_is_refused(folder, capsys):
    (folder / "recipe.yaml").write_text("family: monarc\n")
    os.rename(folder / "model.safetensors", folder.parent / "weights")
    (folder / "model.safetensors").symlink_to(folder.parent / "weights")
    fails(capsys, ["publish", folder, "user/name", "--dry-run"], "model.safetensors", "link")


# --------------------------------------------------------------------------------------------------------- cards


def test_an_export_takes_results_and_card_along(folder, tmp_path):
    (folder / "likelihood.json").write_text(
        json.dumps({"method": "exact", "lm_nll": 2.5, "elm_nll": 2.25, "vocab_size": 258})
    )
    (folder / "recipe.yaml").write_text("data: {corpus: someone/corpus}\nseed: 4\n")
    out = tmp_path / "out"
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("likelihood.json", "recipe.yaml"))
    carry_over(folder, out)
    card = (out / "README.md").read_text()
    assert is_own_card(card)
    assert (out / "likelihood.json").read_bytes() == (folder / "likelihood.json").read_bytes()
    for part in ("2.2500", "someone/corpus", "| seed | 4 |"):
        assert part in card
    later = new_card(out, repo_id="user/name")  # without the recipe
    assert "| seed | 4 |" in later
    assert 'model_info("user/name").sha' in later


def test_the_users_card_is_carried_along_untouched(folder, tmp_path):
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# mine\n")
    out = tmp_path / "out"
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("README.md"))
    carry_over(folder, out)
    assert (out / "README.md").read_bytes() == (folder / "README.md").read_bytes()
    assert has_users_card(out)
    assert new_card(out, repo_id="user/name") is None


def test_a_trainers_card_replaces_its_own_and_keeps_the_users(tmp_path):
    from tests.hub.hub_models import make_trainer

    trainer = make_trainer("monarc", tmp_path / "run", "user/name", "end", push=False)
    trainer.save_model()
    path = tmp_path / "run" / "README.md"
    for tags in ("first", "second"):
        trainer.create_model_card(license="mit", tags=tags, dataset_tags="someone/corpus", finetuned_from="someone/lm")
        text = path.read_text()
        assert is_own_card(text)
        for part in (
            f"- {tags}",
            "license: mit",
            "base_model: someone/lm",
            "- someone/corpus",
            "| optimizer steps | 2 |",
        ):
            assert part in text, part
    assert "- first" not in text
    path.write_text(text + "\nMy own words.\n")
    trainer.create_model_card(tags="third")
    assert path.read_text() == text + "\nMy own words.\n"
