"""``hf-elm rerank``: every kind of causal model, resuming, refusals; and ``hf-elm generate choose=``, ``hf-elm eval choose=``."""

import json
import shutil

import pytest
import torch

from hf_elm.command_line import main
from hf_elm.continuation_scores import scorer_of
from hf_elm.model_comparison import load_causal
from hf_elm.partial_rows import PartialRows
from hf_elm.text_scores import TextScorer
from tests.hf_elm import tiny_harness as tiny


LETTERS = tiny.letters()
ROWS = [
    {"id": "one", "context": "Mr Fox ", "candidates": [{"text": "sits", "score": -2}, {"text": "runs", "score": -1}]},
    {
        "candidates": [{"text": t, "score": s} for t, s in (("it is", 0), ("is it", 0), ("tis", -1))],
        "reference": "is it",
    },
    *(
        {
            "id": f"r{i}",
            "context": "in ",
            "candidates": [{"text": "no", "score": 1}, {"text": "on", "score": 2}],
            "label": 0,
        }
        for i in range(9)
    ),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    models = {"monarc": tiny.monarc(LETTERS, dtype=torch.float32), "nano_ebm": tiny.nano_ebm(LETTERS, torch.float32)}
    models["gpt2"] = tiny.gpt2(LETTERS)
    return {name: tiny.saved(model, LETTERS, folder / name) for name, model in models.items()}


@pytest.fixture
def lists(tmp_path):
    path = tmp_path / "lists.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    return path


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def fails(capsys, arguments, *parts):
    capsys.readouterr()
    assert main(list(map(str, arguments))) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-elm")]
    assert len(error) == 1
    for part in parts:
        assert part in error[0]


@pytest.mark.parametrize(("name", "column"), [("monarc", "elm"), ("nano_ebm", "s2"), ("gpt2", "lm")])
def test_every_kind_of_model_writes_its_scores(folders, lists, tmp_path, capsys, name, column):
    output, report = tmp_path / "out.jsonl", tmp_path / "report.json"
    arguments = [str(lists), f"checkpoint={folders[name]}", f"output={output}", f"report={report}", "progress=false"]
    assert main(["rerank", *arguments]) == 0
    rows = read(output)
    assert [row["id"] for row in rows] == ["one", 2, *(f"r{i}" for i in range(9))]
    model, tokenizer = load_causal(folders[name], "cpu")
    groups = [(row.get("context", ""), [each["text"] for each in row["candidates"]]) for row in ROWS]
    scores = TextScorer(scorer_of(model), tokenizer).scores(groups)
    for row, given, found in zip(rows, ROWS, scores, strict=True):
        expected = sorted((score.log_probs[column] for score in found), reverse=True)
        assert [each["score"] for each in row["candidates"]] == pytest.approx(
            expected, abs=1e-4
        )  # float32, other batches
        assert row["best"] == row["candidates"][0]["text"]
        for each in row["candidates"]:
            assert given["candidates"][each["place"]] == {"text": each["text"], "score": each["first_pass"]}
    measures = json.loads(report.read_text())["measures"]
    assert (measures["num_lists"], measures["num_references"]) == (10, 1)
    assert measures["orders"]["first pass"]["accuracy"]["value"] == 0.0
    assert column in measures["orders"]
    assert "first places of 10 lists" in capsys.readouterr().out


def test_a_model_sees_as_much_as_it_was_trained_on(folders, lists, tmp_path, capsys):
    model = tmp_path / "trained"
    shutil.copytree(folders["gpt2"], model)
    (model / "recipe.yaml").write_text("data: {sequence_length: 6}\n", encoding="utf-8")
    base = ["rerank", str(lists), f"checkpoint={model}", "progress=false"]
    reports = {}
    for name, options in {"own": [], "six": ["window=6"], "five": ["window=5"]}.items():
        reports[name] = tmp_path / f"{name}.json"
        outputs = [f"output={tmp_path / f'{name}.jsonl'}", f"report={reports[name]}"]
        assert main([*base, *outputs, *options]) == 0
    assert read(tmp_path / "own.jsonl") == read(tmp_path / "six.jsonl") != read(tmp_path / "five.jsonl")
    assert "at most 6 tokens seen at once: the rows that" in reports["own"].read_text()
    fails(capsys, [*base, f"output={tmp_path / 'new.jsonl'}", "window=1"], "window must be at least 2")


def test_weights_names_and_lengths(folders, lists, tmp_path, capsys):
    base = ["rerank", str(lists), f"checkpoint={folders['monarc']}", "progress=false"]
    outputs = {}
    for name, options in {
        "first": ["weight=0"],
        "half": ["weight=0.5"],
        "energy": ["by=energy"],
        "lm": ["by=lm"],
    }.items():
        outputs[name] = tmp_path / f"{name}.jsonl"
        assert main([*base, f"output={outputs[name]}", *options]) == 0
    assert [row["best"] for row in read(outputs["first"])] == ["runs", "it is", *["on"] * 9]
    for each in (each for row in read(outputs["half"]) for each in row["candidates"]):
        assert each["score"] == pytest.approx(0.5 * each["elm"] + 0.5 * each["first_pass"])
    for each in (each for row in read(outputs["energy"]) for each in row["candidates"]):
        assert each["score"] == -each["energy"]
        assert "elm" not in each  # no Z was found
    assert "energy" not in read(outputs["lm"])[0]["candidates"][0]
    assert "combined: 0.5 elm + 0.5 first pass" in capsys.readouterr().out


def test_an_interrupted_run_is_continued(folders, lists, tmp_path, monkeypatch, capsys):
    arguments = ["rerank", str(lists), f"checkpoint={folders['monarc']}", "batch_size=1", "progress=false"]
    monkeypatch.setattr("hf_elm.rerank_run.BATCHES_PER_PART", 4)
    assert main([*arguments, f"output={tmp_path / 'whole.jsonl'}"]) == 0
    append, calls = PartialRows.append, []

    def interrupted(self, rows):
        calls.append(1)
        if len(calls) == 3:
            with open(self.folder / "rows.jsonl", "a") as file:
                file.write('{"id": "torn')
            raise KeyboardInterrupt
        append(self, rows)

    output = tmp_path / "out.jsonl"
    with monkeypatch.context() as patched:
        patched.setattr(PartialRows, "append", interrupted)
        assert main([*arguments, f"output={output}"]) == 130
    assert not output.exists()
    assert "the same command continues" in capsys.readouterr().err
    fails(
        capsys,
        [*arguments, f"output={output}", "weight=0.5"],
        "interrupted run that differs",
        "weight is 1.0 there and 0.5 here",
    )
    fails(capsys, [*arguments, f"output={output}", "limit=3"], "differs", "lists")
    assert main([*arguments, f"output={output}"]) == 0
    assert "continuing after 4 of 11 lists" in capsys.readouterr().err
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_rerank_errors_come_before_any_work(folders, lists, tmp_path, capsys):
    (tmp_path / "there.jsonl").write_text("{}")
    model, out = f"checkpoint={folders['gpt2']}", f"output={tmp_path / 'new.jsonl'}"
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text('{"model_type": "m2_bert"}')
    fails(capsys, ["rerank", model, out], "takes one file of lists")
    fails(capsys, ["rerank", lists, model], "rerank needs output=")
    fails(capsys, ["rerank", lists, out], "rerank needs checkpoint=")
    fails(capsys, ["rerank", tmp_path / "none.jsonl", model, out], "does not exist")
    fails(capsys, ["rerank", lists, model, f"output={tmp_path / 'there.jsonl'}"], "exists")
    fails(capsys, ["rerank", lists, model, f"output={tmp_path / 'new.parquet'}"], "must end in .jsonl")
    fails(capsys, ["rerank", lists, model, out, f"report={tmp_path / 'there.jsonl'}"], "report=", "exists")
    fails(capsys, ["rerank", lists, model, out, "weight=2"], "weight must be in [0, 1]")
    fails(capsys, ["rerank", lists, model, out, "by=elm"], "by must be one of lm")
    fails(capsys, ["rerank", lists, model, out, "method=exact"], "method does not concern a gpt2 model")
    fails(
        capsys,
        ["rerank", lists, f"checkpoint={folders['monarc']}", out, "think_steps=2"],
        "think_steps does not concern",
    )
    fails(capsys, ["rerank", lists, f"checkpoint={encoder}", out], "an encoder")
    lists.write_text('{"candidates": ["fino", "é"]}\n{"candidates": ["x"]}', encoding="utf-8")
    fails(capsys, ["rerank", lists, model, out], "lists.jsonl:1", "vocabulary lacks: 'é'")
    fails(capsys, ["rerank", lists, model, out, "weight=0.5"], "lists.jsonl:1", "score of the first pass")
    assert not (tmp_path / "new.jsonl").exists()
    assert not (tmp_path / "new.jsonl.partial").exists()


# --------------------------------------------------------------------------------------------- generate and eval, choose=


@pytest.mark.parametrize("name", ["monarc", "nano_ebm", "gpt2"])
def test_generate_chooses(folders, capsys, name):
    arguments = [
        f"checkpoint={folders[name]}",
        "prompt=Mr Fox ",
        "max_new_tokens=4",
        "num_samples=6",
        "choose=consistency",
    ]
    capsys.readouterr()
    assert main(["generate", *arguments, "answer_pattern=[a-z]"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("Mr Fox ")
    assert "--- consistency: sample" in shown.err
    assert "%" in shown.err
    assert main(["generate", *arguments, "answer_pattern=[a-z]"]) == 0
    assert capsys.readouterr().out == shown.out


def test_one_sample_of_generate_is_plain_generate(folders, capsys):
    arguments = [f"checkpoint={folders['monarc']}", "prompt=Mr Fox ", "max_new_tokens=6", "seed=4", "stream=false"]
    assert main(["generate", *arguments]) == 0
    plain = capsys.readouterr().out
    assert main(["generate", *arguments, "choose=likelihood", "choose_from=1"]) == 0
    assert capsys.readouterr().out == plain


def test_keys_of_a_choice_are_checked(folders, capsys):
    model = f"checkpoint={folders['monarc']}"
    fails(capsys, ["generate", model, "num_samples=4"], "num_samples concerns a choice", "choose=")
    fails(capsys, ["generate", model, "choose=best"], "choose must be likelihood, energy, vote or consistency")
    fails(capsys, ["generate", model, "choose=vote", "do_sample=false"], "do_sample must be true with choose")
    fails(capsys, ["generate", model, "choose=vote", "num_samples=0"], "num_samples must be at least 1")
    fails(capsys, ["generate", model, "choose=vote", "num_return_sequences=2"], "num_return_sequences must be 1")
    fails(capsys, ["generate", model, "choose=vote", "prompt=x", "answer_pattern=["], "no regular expression")
    fails(capsys, ["generate", f"checkpoint={folders['gpt2']}", "choose=vote", "num_candidates=2"], "unknown key")
    fails(capsys, ["generate", f"checkpoint={folders['gpt2']}", "prompt=x"], "hf-elm adapt")
    fails(capsys, ["eval", model, "choose_from=3"], "choose_from concerns a choice")
    fails(capsys, ["eval", model, "choose=best"], "choose must be")
    fails(capsys, ["eval", f"checkpoint={folders['nano_ebm']}", "choose=energy"], "choose=energy does not concern")


@pytest.mark.parametrize("name", ["monarc", "nano_ebm"])
def test_tasks_generate_by_choice(folders, name):
    pytest.importorskip("lm_eval")
    from hf_elm.harness import HarnessModel

    sampled = {"do_sample": True, "temperature": 1.0, "until": ["\n"], "max_gen_toks": 4}
    requests = [tiny.request(context, dict(sampled)) for context in ("Mr Fox ", "in ")]
    for half in ("lm", "elm"):
        plain = HarnessModel(folders[name], half=half).generate_until(requests, disable_tqdm=True)
        for choose in ("likelihood", "vote"):
            one = HarnessModel(folders[name], half=half, choose=choose, choose_from=1)
            assert one.generate_until(requests, disable_tqdm=True) == plain
    many = HarnessModel(folders[name], choose="consistency", choose_from=3, answer_pattern="[a-z]")
    greedy = [
        tiny.request(each.args[0], {"until": ["\n"], "max_gen_toks": 5}) for each in requests
    ]  # sampled all the same
    found = many.generate_until(greedy, disable_tqdm=True)
    assert found == many.generate_until(greedy, disable_tqdm=True)
    assert many.generate_until(greedy[1:2], disable_tqdm=True) == found[1:2]
    with pytest.raises(ValueError, match="choose_from must be at least 1"):
        HarnessModel(folders[name], choose="vote", choose_from=0)
