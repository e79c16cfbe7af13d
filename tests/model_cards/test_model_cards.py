"""Cards say what the records say: golden files, nothing unknown, nothing private, and the user's own card recognised."""

import ast
import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_elm.model_cards.card_facts import CardFacts, read_facts
from hf_elm.model_cards.card_text import is_own_card, model_card, with_repo_id
from hf_elm.model_cards.measurements import likelihood_measurements
from tests.model_cards.card_records import GOLDEN, RECORDS, write_records, write_weights


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=RECORDS)
def record(request, tmp_path):
    """(name, facts)."""
    declared = write_records(request.param, tmp_path)
    return request.param, read_facts(tmp_path, **declared)


def test_the_card_is_the_golden_one(record):
    name, facts = record
    remedy = "if the difference is meant: python -m tests.model_cards.card_records"
    assert model_card(facts) == (GOLDEN / f"{name}.md").read_text(encoding="utf-8"), remedy


def test_nothing_unknown_private_or_dishonest_is_said(record):
    text = model_card(record[1])
    assert not re.search(r"\b(None|null|nan|NaN|inf|Undefined|unknown)\b", text)
    for part in ("More Information", "/home", "hf-elm train", "2.3456", "Linux"):  # 2.3456 supposes that Z = 1
        assert part not in text, part


def test_the_hub_can_read_the_metadata(record):
    _, facts = record
    data = ModelCard(model_card(facts)).data
    assert data.library_name in ("transformers", "sentence-transformers")
    assert "custom_code" in data.tags
    assert ("energy-based-model" in data.tags) == (facts.family != "m2_bert")
    own = [each for each in likelihood_measurements(facts) if not (each.gain or each.of_another)]
    results = data.eval_results or []
    assert [result.metric_value for result in results] == [each.value for each in own]
    assert data.license == facts.license


def test_an_edited_card_is_the_users(record):
    text = model_card(record[1])
    assert is_own_card(text)
    assert is_own_card(text.replace("\n", "\r\n"))
    assert not is_own_card(text.replace("Limits and risks", "Limits"))
    assert not is_own_card(f"{text}\nOne more line.\n")
    assert not is_own_card(text[: text.rindex("<!--")])


def test_a_card_moves_to_a_repository_and_keeps_its_facts(record, tmp_path):
    _, facts = record
    nowhere = dataclasses.replace(facts, repo_id=None, license=None)
    only_config = CardFacts(
        facts.config, repo_id="user/moved", license="mit", sentence_transformers=facts.sentence_transformers
    )
    moved = with_repo_id(model_card(nowhere), only_config)
    expected = model_card(dataclasses.replace(facts, repo_id="user/moved", license="mit"))
    assert is_own_card(moved)
    assert ModelCard(moved).text == ModelCard(expected).text.replace(expected.splitlines()[-1], moved.splitlines()[-1])
    assert ModelCard(moved).data.to_dict() == ModelCard(expected).data.to_dict()


def test_a_checkpoint_has_its_runs_recipe_but_not_its_likelihood(tmp_path):
    write_records("monarc_adapted", tmp_path)
    checkpoint = tmp_path / "checkpoint-10"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text((tmp_path / "config.json").read_text())
    facts = read_facts(checkpoint)
    assert facts.recipe["seed"] == 3
    assert facts.last_log["step"] == 10
    assert facts.likelihood == {}


@pytest.mark.parametrize(
    ("corpus", "output_dir", "datasets"),
    [
        ("someone/corpus", "runs/x", ["someone/corpus"]),
        ("wikitext", None, ["wikitext"]),
        ("stdlib", None, []),
        ("runs/texts", "runs/x", []),  # beside the run's own folder: a path
        ("/data/texts", None, []),
        ("texts.jsonl", None, []),
        ("my/folder/texts", None, []),
        ("data/*.txt", None, []),
        ("tests", None, []),  # a folder that is here
    ],
)
def test_only_hub_ids_are_named_as_datasets(monkeypatch, corpus, output_dir, datasets):
    monkeypatch.chdir(ROOT)
    facts = CardFacts({"model_type": "monarc"}, {"data": {"corpus": corpus}, "train": {"output_dir": output_dir}})
    assert facts.datasets == datasets
    assert "/data" not in (facts.corpus_name or "")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", "{}"),
        ("likelihood.json", "{'a': 1}"),
        ("environment.json", "3"),
        ("recipe.yaml", "a: [1"),
        ("model.safetensors", "not weights"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, file, content):
    write_records("monarc_adapted", tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=file):
        read_facts(tmp_path)


def test_a_line_cut_off_by_a_kill_is_passed_over_and_other_families_are_refused(tmp_path):
    write_records("monarc_adapted", tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "lo')
    assert read_facts(tmp_path).last_log["step"] == 20
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="bert"):
        model_card(read_facts(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        read_facts(tmp_path / "nowhere")


def test_sharded_weights_are_counted_together(tmp_path):
    write_records("monarc_unknown", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for number in (1, 2, 3):
        write_weights(tmp_path / f"model-0000{number}-of-00003.safetensors")
    assert read_facts(tmp_path).parameters == 36


def test_cards_import_huggingface_hub_its_yaml_and_nothing_else():
    for path in (ROOT / "model_cards").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for name in names:
                assert name.split(".")[0] in {"huggingface_hub", "yaml", *sys.stdlib_module_names}, (
                    f"{path.name}: {name}"
                )
