"""``hf-elm automata``: trains and goes on where it was interrupted, scores saved models, writes a corpus to train on."""

import json

import pytest

from hf_elm.command_line import main
from hf_elm.in_context_checkpoints import languages_of_checkpoint


TINY = ["languages=4", "steps=3", "energy_steps=2", "hidden_size=16", "batch_size=4", "length=23"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("automata") / "run"
    assert main(["automata", f"output_dir={folder}", *TINY]) == 0
    return folder


def test_models_are_trained_scored_and_kept(trained, capsys):
    scores = json.loads((trained / "scores.json").read_text())
    names = [score["name"] for score in scores["scores"]]
    assert names == [
        "2-gram of the row", "3-gram of the row", "LM", "ELM", "LM trained on", "nanoEBM, system 1", "nanoEBM, system 2, 1 step",
        "nanoEBM, system 2, 2 steps", "nanoEBM, system 2, 8 steps", "true automaton",
    ]  # fmt: skip
    assert scores["num_languages"] == 4
    assert scores["settings"]["length"] == 23
    found = {score["name"]: score for score in scores["scores"]}
    assert found["LM"]["cpu_seconds"] > 0
    assert found["ELM"]["kl_difference"] is not None
    assert found["true automaton"]["means"]["kl"] == 0
    assert found["ELM"]["means"]["kl"] != found["LM"]["means"]["kl"]


def test_a_run_goes_on_with_what_is_missing(trained, capsys):
    before = (trained / "lm" / "model.safetensors").stat().st_mtime_ns
    scores = (trained / "scores.json").read_text()
    for path in (trained / "nano_ebm").iterdir():
        path.unlink()
    (trained / "nano_ebm").rmdir()
    assert main(["automata", f"output_dir={trained}", *TINY]) == 0
    out = capsys.readouterr().out
    assert "nanoEBM:" in out
    assert "LM: " not in out
    assert (trained / "lm" / "model.safetensors").stat().st_mtime_ns == before
    again = json.loads((trained / "scores.json").read_text())
    for old, new in zip(json.loads(scores)["scores"], again["scores"], strict=True):
        assert old["means"] == new["means"]  # the model that was trained anew is the same one
    assert main(["automata", f"output_dir={trained}", *TINY, "steps=4"]) == 2
    assert "steps is 3 there and 4 here" in capsys.readouterr().err


def test_saved_models_are_scored_on_their_own_languages(trained, capsys, tmp_path):
    for name, row in (("lm", "LM"), ("elm", "ELM"), ("nano_ebm", "system 2, 3 steps")):
        output = tmp_path / f"{name}.json"
        command = ["automata", f"checkpoint={trained / name}", "languages=4", "think_steps=[3]", f"output={output}"]
        assert main(command) == 0
        assert row in capsys.readouterr().out
        scores = json.loads(output.read_text())
        assert scores["settings"]["length"] == 23  # as the folder says
        mine = next(score for score in scores["scores"] if score["name"] == row)
        if name == "elm":
            whole = json.loads((trained / "scores.json").read_text())["scores"]
            other = next(score for score in whole if score["name"] == "ELM")
            assert mine["means"]["kl"] == pytest.approx(other["means"]["kl"], abs=1e-6)
        assert main(command) == 2
        assert "exists" in capsys.readouterr().err


def test_a_corpus_is_written_trained_on_and_scored(tmp_path, capsys):
    corpus, run = tmp_path / "corpus", tmp_path / "run"
    assert (
        main(["automata", f"write={corpus}", "train_languages=40", "languages=6", "num_symbols=4", "length=31"]) == 0
    )
    assert "40 languages to train on, 6 others held out" in capsys.readouterr().out
    lines = {part: (corpus / f"{part}.jsonl").read_text().splitlines() for part in ("train", "test")}
    rows = {part: [json.loads(line)["text"] for line in own] for part, own in lines.items()}
    assert [len(rows["train"]), len(rows["test"])] == [40, 6]
    assert {len(row) for part in rows.values() for row in part} == {31}
    settings = ["tokenizer.kind=char", "data.sequence_length=32", "train.max_steps=2", "train.use_cpu=true"]
    sizes = ["model.text_config.hidden_size=16", "model.text_config.num_hidden_layers=1", "evaluate.skip=true"]
    small = [
        "model.text_config.model_type=llama",
        "model.text_config.num_attention_heads=2",
        "model.text_config.intermediate_size=16",
    ]
    train = ["train", f"data.corpus={corpus}", f"output_dir={run}", *settings, *sizes, *small]
    assert main([*train, "train.per_device_train_batch_size=4", "train.save_strategy=no"]) == 0
    capsys.readouterr()
    output = tmp_path / "scores.json"
    assert main(["automata", f"checkpoint={run}", "languages=6", f"output={output}"]) == 0
    scores = json.loads(output.read_text())
    assert scores["settings"]["num_symbols"] == 4  # as the corpus of its run says
    assert [score["name"] for score in scores["scores"]][2:] == ["LM", "ELM", "true automaton"]
    assert main(["automata", f"write={corpus}"]) == 2
    assert "write=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["checkpoint=x", "write=y"], "exclude each other"),
        (["write=y", "steps=3"], "steps says nothing with write="),
        (["checkpoint=x", "output_dir=y"], "output_dir says nothing with checkpoint="),
        (["train_languages=3"], "train_languages says nothing without"),
        (["some.yaml"], "key=value pairs only"),
        (["output_dir=NEW", "models=[elm]"], "elm starts from lm"),
        (["output_dir=NEW", "models=[gpt]"], "'gpt' is not one of lm, elm"),
        (["output_dir=NEW", "steps=0"], "steps must be at least 1"),
        (["output_dir=NEW", "think_steps=[0]"], "think_steps must be"),
        (["output_dir=NEW", "hidden_size=30"], "hidden_size must be a multiple of 4"),
        (["output_dir=NEW", "max_edges=0"], "max_edges must be at least 1"),
        (["checkpoint=nothing/here/at_all"], "does not exist"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(arguments, named, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["automata", *arguments]) == 2
    assert named in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("recipe", [b"data: {corpus: [\n", b"\xff\xfe", b"- 1\n"])
def test_a_damaged_recipe_does_not_hide_the_settings_beside_it(tmp_path, recipe):
    (tmp_path / "recipe.yaml").write_bytes(recipe)
    assert languages_of_checkpoint(str(tmp_path)) == {}
    (tmp_path / "languages.json").write_text('{"num_symbols": 4}')
    assert languages_of_checkpoint(str(tmp_path)) == {"num_symbols": 4}
