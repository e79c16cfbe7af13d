"""``hf-elm eval``: both halves in one table from one run, limit and cache, and its errors."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch


pytest.importorskip("lm_eval")

from hf_elm.command_line import main
from hf_elm.continuation_batch import continuation_pieces
from hf_elm.continuation_scores import ContinuationScorer
from hf_elm.evaluation import evaluate_elm
from hf_elm.saved_models import load_checkpoint
from hf_elm.trainers.tokenization import build_tokenizer
from tests.hf_elm import tiny_harness as tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("models"), build_tokenizer("byte")
    models = {
        "monarc": tiny.monarc(tokenizer, 0.1, torch.float32),
        "nano_ebm": tiny.nano_ebm(tokenizer, torch.float32),
    }
    return {name: tiny.saved(model, tokenizer, folder / name) for name, model in models.items()}


@pytest.fixture(autouse=True)
def no_questions_to_the_system(monkeypatch):
    """The harness describes the machine by subprocesses, which take longer than all the rest."""
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "not asked")


def run(tmp_path, name, *arguments):
    output = tmp_path / f"{name}.json"
    assert main(["eval", *arguments, f"output={output}", "bootstrap_iters=10"]) == 0
    return json.loads(output.read_text())


def fails(capsys, arguments, *parts):
    capsys.readouterr()
    assert main(["eval", *arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-elm")]
    assert len(lines) == 1
    for part in parts:
        assert part in lines[0]


def test_both_halves_of_monarc_on_the_shipped_tasks(folders, tmp_path, capsys):
    found = run(tmp_path, "both", f"checkpoint={folders['monarc']}", "limit=2", "log_samples=true")
    table = capsys.readouterr().out
    assert list(found["results"]) == ["lm", "elm"]
    for column, results in found["results"].items():
        assert set(results["results"]) == {"library_cloze", "library_perplexity", "library_completion"}
        assert {counts["effective"] for counts in results["n-samples"].values()} == {2}
        assert results["config"]["column"] == column
    assert found["scoring"]["method"] == "exact"
    for word in ("LM", "ELM", "library_cloze (2)", "bits_per_byte", "log Z exact over 258 tokens"):
        assert word in table
    values = [found["results"][c]["results"]["library_perplexity"]["bits_per_byte,none"] for c in ("lm", "elm")]
    difference = found["differences"]["library_perplexity"]["bits_per_byte,none"]
    assert difference["value"] == pytest.approx(values[1] - values[0], abs=1e-9)
    _check_against_evaluation(found, folders["monarc"])


def _check_against_evaluation(found, folder):
    """The logged log-likelihood of an answer is the one that `evaluate_elm` gives to the same tokens."""
    model, tokenizer = load_checkpoint(folder, "cpu")
    for column, name in (("lm", "lm_nll"), ("elm", "elm_nll")):
        sample = found["samples"][column]["library_cloze"][0]
        context, answer = sample["arguments"][0]
        spaces = len(context) - len(context.rstrip())
        after = tokenizer(context[len(context) - spaces :] + answer)["input_ids"]
        before = tokenizer(context.rstrip())["input_ids"]
        pieces = continuation_pieces(before, after, tiny.POSITIONS)
        rows = [{"input_ids": old + new, "labels": [-100] * len(old) + new} for old, new in pieces]
        likelihood = evaluate_elm(model, rows, method="exact", progress=False)
        assert likelihood.num_tokens == len(after)
        logged = sample["resps"][0][0][0]
        assert logged / len(after) == pytest.approx(-getattr(likelihood, name), abs=1e-6)  # nats/token, float32


@pytest.mark.slow
def test_the_harness_own_command_line_knows_the_model_and_the_tasks(folders):
    model = ["--model", "hf_elm", "--model_args", f"pretrained={folders['monarc']},half=lm", "--device", "cpu"]
    command = [sys.executable, "-m", "hf_elm.harness", *model, "--tasks", "library_completion", "--limit", "1"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr[-2000:]
    assert "exact_match" in found.stdout


def test_the_cache_answers_and_depends_on_the_settings(folders, tmp_path, monkeypatch):
    arguments = [
        f"checkpoint={folders['monarc']}",
        "tasks=library_cloze",
        "limit=2",
        f"use_cache={tmp_path / 'cache'}",
    ]
    first = run(tmp_path, "first", *arguments)
    assert len(list(tmp_path.glob("cache_*"))) == 2  # one for each half

    def refuse(*_):
        raise AssertionError("scored again")

    with monkeypatch.context() as patched:
        patched.setattr(ContinuationScorer, "_batch_scores", refuse)
        again = run(tmp_path, "again", *arguments)
    assert [again["results"][c]["results"] for c in ("lm", "elm")] == [
        first["results"][c]["results"] for c in ("lm", "elm")
    ]
    sampled = run(tmp_path, "sampled", *arguments, "method=sampled", "exact_top=8", "num_samples=2", "half=elm")
    assert len(list(tmp_path.glob("cache_*"))) == 3
    assert sampled["undecided"]["library_cloze"]["questions"] == 2


def test_generations_sampled_by_another_seed_are_not_those_of_the_cache(folders, tmp_path):
    arguments = [
        f"checkpoint={folders['nano_ebm']}",
        "tasks=library_completion",
        "limit=1",
        "half=s1",
        "max_gen_toks=4",
    ]
    for number, seed in enumerate((0, 1), 1):
        own = ["choose=vote", "choose_from=2", f"use_cache={tmp_path / 'cache'}", f"seed={seed}"]
        run(tmp_path, f"seed{seed}", *arguments, *own)
        assert len(list(tmp_path.glob("cache_*"))) == number


def test_where_z_is_sampled_both_ends_stand_beside_the_middle(folders, tmp_path):
    arguments = ["--model", folders["monarc"], "--tasks", "library_perplexity", "--limit", "1", "method=sampled"]
    found = run(tmp_path, "ends", *arguments, "exact_top=32", "num_samples=4")
    bits = {c: each["results"]["library_perplexity"]["bits_per_byte,none"] for c, each in found["results"].items()}
    assert list(bits) == ["lm", "elm", "elm_lower", "elm_upper"]
    assert bits["elm_upper"] < bits["elm"] < bits["elm_lower"]  # log p at most: fewest bits
    assert bits["elm"] == pytest.approx((bits["elm_upper"] + bits["elm_lower"]) / 2)


def test_nano_ebm_with_more_thinking(folders, tmp_path, capsys):
    arguments = [f"checkpoint={folders['nano_ebm']}", "limit=1", "tasks=library_perplexity,library_completion"]
    found = run(tmp_path, "thinks", *arguments, "think_steps=3")
    assert list(found["results"]) == ["s1", "s2"]
    assert found["scoring"]["think_steps"] == 3
    assert "system 2 after 3 steps" in capsys.readouterr().out
    only = run(tmp_path, "system_one", *arguments, "half=lm")
    assert list(only["results"]) == ["s1"]
    assert only["results"]["s1"]["results"] == found["results"]["s1"]["results"]


def test_errors_come_before_any_work(folders, tmp_path, capsys, monkeypatch):
    model = f"checkpoint={folders['monarc']}"
    fails(capsys, ["tasks=library_cloze"], "checkpoint=")
    fails(capsys, [model, "tasks=,"], "tasks names no task")
    fails(capsys, [model, "think_steps=2"], "think_steps does not concern a monarc model")
    fails(capsys, [f"checkpoint={folders['nano_ebm']}", "method=exact"], "method does not concern a nano_ebm model")
    fails(capsys, [model, "limit=0"], "limit must be above 0")
    fails(capsys, [model, "half=both_"], "half must be one of elm, lm")
    (tmp_path / "there.json").write_text("{}")
    fails(capsys, [model, f"output={tmp_path / 'there.json'}"], "exists")
    monkeypatch.setattr(importlib.util, "find_spec", _without(importlib.util.find_spec))
    fails(capsys, [model], "lm_eval is missing", 'pip install "hf_elm[eval]"')


def _without(find_spec):
    return lambda name, *rest: None if name == "lm_eval" else find_spec(name, *rest)
