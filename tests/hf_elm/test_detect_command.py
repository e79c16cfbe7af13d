"""``hf-elm detect``: training, judging, resuming, refusing; on models of a few hundred weights."""

import json
from pathlib import Path

import pytest
import torch

from hf_elm.command_line import main
from hf_elm.commands.detect import _training_settings
from hf_elm.detection import Detector, train_detector
from hf_elm.detection_run import _beyond_rows
from hf_elm.trainers.tokenization import build_tokenizer
from tests.hf_elm import tiny_harness as tiny


CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .;:\n"  # whatever a model of them draws is text
SMALL = (
    "document_tokens=16",
    "prompt_tokens=8",
    "passages=3",
    "epochs=3",
    "resamples=100",
    "data.held_out_fraction=0.5",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("models"), build_tokenizer("char", [CHARACTERS])
    made = {
        "monarc": tiny.monarc(tokenizer, 0.1, torch.float32),
        "nano_ebm": tiny.nano_ebm(tokenizer, torch.float32),
        "gpt2": tiny.gpt2(tokenizer),
    }
    return {name: tiny.saved(model, tokenizer, folder / name) for name, model in made.items()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(12):
        (folder / f"{i}.txt").write_text(
            f"document {i} says: " + "a line of its own. " * 12 + str(i), encoding="utf-8"
        )
    return str(folder)


def train(models, corpus, output, *arguments, name="monarc"):
    paths = (f"checkpoint={models[name]}", f"data.corpus={corpus}", f"output={output}")
    return main(["detect", "train", *paths, *SMALL, *arguments])


@pytest.fixture(scope="module")
def detector(models, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("detectors") / "detector"
    assert train(models, corpus, folder, "generator=lm,lm@0.5") == 0
    return folder


def fails(capsys, arguments, *parts):
    capsys.readouterr()
    assert main(["detect", *map(str, arguments)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-elm")]
    for part in parts:
        assert part in line


def test_training_writes_a_detector_and_its_report(detector, models):
    assert {path.name for path in detector.iterdir()} == {
        "detector.json",
        "head.json",
        "head.safetensors",
        "report.json",
    }
    report = json.loads((detector / "report.json").read_text())
    assert report["trained_on"] == ["lm", "lm@0.5"]
    assert [test["generator"] for test in report["tests"]] == ["lm", "lm@0.5", "elm"]
    for test in report["tests"]:
        assert {"head", "mean perplexity", "mean energy", "curvature"} <= test["aurocs"].keys()
        assert test["strongest_baseline"] != "head"
        low, high = test["aurocs"]["head"]["interval"]
        assert 0 <= low <= test["aurocs"]["head"]["value"] <= high <= 1
    record = json.loads((detector / "detector.json").read_text())
    assert record["model"]["checkpoint"] == models["monarc"]
    assert len(record["model"]["weights_sha256"]) == 64


def test_judging_files_and_standard_input(detector, tmp_path, capsys, monkeypatch):
    texts = ["a line of its own. a line", "x", "q" * 40]
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    output = tmp_path / "scores.jsonl"
    arguments = ["detect", str(tmp_path / "texts.txt"), f"detector={detector}"]
    assert main([*arguments, f"output={output}", "token_weights=true", "batch_size=1"]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in rows] == [0, 1, 2]
    assert [row["tokens"] for row in rows] == [25, 1, 40]
    assert [len(row["pieces"]) for row in rows] == [2, 0, 3]
    assert rows[1]["probability"] is None
    for row in (rows[0], rows[2]):
        assert 0 < row["probability"] < 1
        for piece in row["token_weights"]:
            assert sum(weight for _, weight in piece) == pytest.approx(1, abs=1e-4)
    assert "".join(token for token, _ in rows[0]["token_weights"][0]) == texts[0][1:16]
    assert not (tmp_path / "scores.jsonl.partial").exists()
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", open(tmp_path / "texts.txt", encoding="utf-8"))  # noqa: SIM115
    assert main(["detect", "-", f"detector={detector}"]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for one, other in zip(rows, printed, strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)  # batches of another size
    scores = list(Detector.load(detector).score(texts))
    assert scores[0].probability == pytest.approx(rows[0]["probability"], abs=1e-5)
    fails(capsys, [*arguments[1:], f"output={output}"], "exists; choose another file")


def test_an_interrupted_training_continues_without_drawing_or_reading_again(models, corpus, tmp_path, monkeypatch):
    import hf_elm.detection as detection

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(detection, "fit_head", interrupted)
        assert train(models, corpus, tmp_path / "detector", "also_test=") == 130
    assert not (tmp_path / "detector").exists()
    files = set((tmp_path / "detector.cache").iterdir())
    read = []
    extract = detection.FeatureExtractor.extract
    monkeypatch.setattr(
        detection.FeatureExtractor, "extract", lambda self, rows: read.append(rows) or extract(self, rows)
    )
    assert train(models, corpus, tmp_path / "detector", "also_test=") == 0
    assert set((tmp_path / "detector.cache").iterdir()) > files
    assert len(read) == 2  # the human and the machine texts of the test side: what came before was there
    assert train(models, corpus, tmp_path / "again", "also_test=", f"cache={tmp_path / 'detector.cache'}") == 0
    assert len(read) == 2
    for name in ("head.safetensors", "report.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "detector" / name).read_bytes()


def test_an_interrupted_judgement_continues_from_what_was_read(detector, tmp_path, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    (tmp_path / "a.txt").write_text("a line of its own\nand another line\n", encoding="utf-8")
    output = tmp_path / "judged.jsonl"
    arguments = ["detect", str(tmp_path / "a.txt"), f"detector={detector}", f"output={output}"]
    with monkeypatch.context() as patch:
        patch.setattr(Detector, "_score", interrupted)
        assert main(arguments) == 130
    assert f"kept in {output}.partial; the same command continues" in capsys.readouterr().err
    assert not output.exists()
    monkeypatch.setattr("hf_elm.detection_features.FeatureExtractor.extract", None)  # nothing is left to read
    assert main(arguments) == 0
    assert len(output.read_text().splitlines()) == 2
    assert not Path(f"{output}.partial").exists()


def test_a_folder_of_somebody_else_is_not_removed(detector, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a line of its own\n", encoding="utf-8")
    output = tmp_path / "judged.jsonl"
    rows = Path(f"{output}.partial") / "rows.jsonl"  # of an interrupted `hf-elm score output=judged.jsonl`
    rows.parent.mkdir()
    rows.write_text("{}\n", encoding="utf-8")
    arguments = [tmp_path / "a.txt", f"detector={detector}", f"output={output}"]
    fails(capsys, arguments, "judged.jsonl.partial is in the way", "rows.jsonl")
    assert rows.read_text() == "{}\n"
    assert not output.exists()


def test_texts_beyond_the_trained_rows_are_told_of(tmp_path):
    (tmp_path / "recipe.yaml").write_text("data: {sequence_length: 24}\n", encoding="utf-8")
    assert _beyond_rows(str(tmp_path), 8, 16) is None
    assert "trained on rows of 24 tokens; prompt_tokens=9" in _beyond_rows(str(tmp_path), 9, 16)
    assert _beyond_rows("user/name", 900, 900) is None


def test_the_seed_of_the_draws_does_not_move_the_split_of_the_corpus(models):
    settings = _training_settings({"checkpoint": models["gpt2"], "output": "detector", "seed": 5})
    assert (settings["seed"], settings["split_seed"]) == (5, 0)


@pytest.mark.parametrize("name", ["nano_ebm", "gpt2"])
def test_other_models_have_detectors_too(name, models, corpus, tmp_path):
    assert train(models, corpus, tmp_path / "detector", "hidden_states=true", name=name) == 0
    report = json.loads((tmp_path / "detector" / "report.json").read_text())
    assert [test["generator"] for test in report["tests"]] == (["lm", "elm"] if name == "nano_ebm" else ["lm"])
    expected = "mean fall of the energy" if name == "nano_ebm" else "mean perplexity"
    assert expected in report["tests"][0]["aurocs"]
    (score,) = Detector.load(tmp_path / "detector").score(["a line of its own."])
    assert 0 < score.probability < 1


def test_another_model_is_refused(detector, models, capsys, tmp_path):
    (tmp_path / "a.txt").write_text("a text\n", encoding="utf-8")
    arguments = [tmp_path / "a.txt", f"detector={detector}", f"checkpoint={models['nano_ebm']}"]
    fails(capsys, arguments, "is for another model", "weights_sha256", models["monarc"], "hf-elm detect train")
    moved = [tmp_path / "a.txt", f"detector={detector}", f"checkpoint={tmp_path / 'nowhere'}"]
    fails(capsys, moved, "does not exist", "say where it is by checkpoint=")


def test_wrong_input_is_refused_before_any_work(detector, models, corpus, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a text\n", encoding="utf-8")
    text, known = tmp_path / "a.txt", f"detector={detector}"
    for arguments, parts in (
        ([text], ["needs detector=FOLDER"]),
        ([known], ["needs an INPUT"]),
        ([text, f"detector={tmp_path}"], ["has no detector.json", "hf-elm detect train"]),
        ([text, known, "output=a.csv"], ["must end in .jsonl"]),
        ([text, known, "batch_size=0"], ["batch_size must be at least 1"]),
        ([text, known, "detectr=a"], ["unknown key"]),
        (["train", f"output={tmp_path / 'd'}"], ["checkpoint is missing"]),
        (["train", "a", f"checkpoint={models['gpt2']}", f"output={tmp_path / 'd'}"], ['got "a"']),
        (["train", f"checkpoint={models['gpt2']}", f"output={detector}"], ["exists and is not empty"]),
    ):
        fails(capsys, arguments, *parts)
    own = ["train", f"checkpoint={models['monarc']}", f"data.corpus={corpus}", f"output={tmp_path / 'd'}", SMALL[-1]]
    for argument, part in (
        ("passages=0", "passages must be at least 1"),
        ("temperature=0", "temperature must be above 0"),
        ("generator=gpt", "must be lm or elm"),
        ("think_steps=2", "does not concern a monarc model"),
        ("document_tokens=60", "do not fit into the model's 64 positions"),
        ("document_tokens=500", "are long enough"),
        ("num_candidates=1", "num_candidates must be at least 2"),
    ):
        fails(capsys, [*own, argument], part)
    plain = ["train", f"checkpoint={models['gpt2']}", *own[2:]]
    for key in ("think_steps", "num_candidates", "exact_top"):
        fails(capsys, [*plain, f"{key}=3"], f"{key} does not concern a gpt2 model")
    assert not (tmp_path / "d").exists()


def test_the_python_equivalent(models, tmp_path):
    texts = [f"{i} " + "words and words and " * 10 for i in range(6)]
    report = train_detector(
        models["gpt2"],
        texts,
        tmp_path / "d",
        document_tokens=16,
        prompt_tokens=8,
        epochs=2,
        resamples=100,
        progress=False,
    )
    assert report.tests[0].texts > 0
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        train_detector(models["gpt2"], texts, tmp_path / "d")
