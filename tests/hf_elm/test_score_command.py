"""``hf-elm score``: what it reads and writes, the default window, interruption and continuation, and its errors."""

import io
import json
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from hf_elm.command_line import main
from hf_elm.document_scores import DocumentScorer
from hf_elm.saved_models import load_checkpoint
from hf_elm.scored_tables import read_table
from hf_elm.scoring import score_texts
from hf_elm.trainers.corpora import load_corpus
from tests.hf_elm import tiny_harness as tiny


LETTERS = tiny.letters()
WORDS = ["snow or", "this in", "hills, my ", "or two", "thirty. "]  # letters of the vocabulary
TEXTS = [" ".join(WORDS[(i + k) % 5] for k in range(1 + i % 7)) for i in range(40)] + ["x", ""]
ROW_LENGTH = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of a MonArc model and a nanoEBM on rows of 16, a plain model, and texts."""
    folder = tmp_path_factory.mktemp("score")
    models = {"monarc": tiny.monarc, "nano": tiny.nano_ebm, "other": lambda *a, **k: tiny.monarc(*a, spread=0.4, **k)}
    for name, make in models.items():
        tiny.saved(make(LETTERS, dtype=torch.float32), LETTERS, folder / name)
    tiny.saved(tiny.gpt2(LETTERS), LETTERS, folder / "gpt2")
    (folder / "corpus.txt").write_text("<|endoftext|>".join(text * 3 for text in TEXTS[:40]), encoding="utf-8")
    data = {"corpus": str(folder / "corpus.txt"), "sequence_length": ROW_LENGTH, "held_out_fraction": 0.3}
    for name, family in (("monarc", "monarc"), ("nano", "nano_ebm")):
        (folder / name / "recipe.yaml").write_text(yaml.safe_dump({"family": family, "seed": 3, "data": data}))
    rows = [{"key": f"d{i}", "body": text, "domain": "ab"[i % 2], "rating": i} for i, text in enumerate(TEXTS)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def score(folder, *arguments, model="monarc"):
    fixed = [f"checkpoint={folder / model}", "device=cpu", "progress=false"]
    return main(["score", *map(str, arguments), *fixed])


def fails(capsys, *arguments):
    """The one line of a refusal."""
    capsys.readouterr()
    assert main(["score", *map(str, arguments)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-elm")]
    assert len(errors) == 1
    return errors[0]


TABLE = ["text_column=body", "id_column=key", "keep=[domain, rating]"]


def test_tables_to_tables(folder, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    for suffix in ("parquet", "jsonl"):
        output = tmp_path / f"out.{suffix}"
        assert score(folder, folder / "texts.jsonl", f"output={output}", "tokens=true", *TABLE) == 0
    shown = capsys.readouterr().out
    rows = list(read_table(tmp_path / "out.parquet"))
    assert rows == list(read_table(tmp_path / "out.jsonl"))
    assert [row["id"] for row in rows] == [f"d{i}" for i in range(42)]
    assert [row["text"] for row in rows] == TEXTS
    assert [row["rating"] for row in rows] == list(range(42))
    assert {row["domain"] for row in rows} == {"a", "b"}
    model, tokenizer = load_checkpoint(str(folder / "monarc"), "cpu")
    expected = score_texts(model, tokenizer, TEXTS, window=ROW_LENGTH, tokens=True, progress=False)
    for row, other in zip(rows, expected, strict=True):
        for name, value in other.items():
            near = pytest.approx(value, abs=1e-4) if isinstance(value, float) else value  # float32, other batches
            assert row[name] == near or name.startswith("token_")
    record = json.loads((tmp_path / "out.parquet.json").read_text())
    tokens = sum(row["num_tokens"] for row in rows)
    assert (record["num_documents"], record["num_scored_documents"], record["num_tokens"]) == (42, 40, tokens)
    mean = -sum(row["elm_log_prob"] or 0 for row in rows) / tokens
    assert record["means"]["elm_nats_per_token"]["value"] == pytest.approx(mean, rel=1e-9)
    assert record["settings"]["scoring"]["method"] == "exact"
    assert record["window"] == ROW_LENGTH
    for words in ("log Z exact", "window of 16 tokens (the rows that", "2 documents have fewer than two", "bits/byte"):
        assert words in shown
    assert {path.name for path in tmp_path.iterdir()} == {
        f"out.{s}{j}" for s in ("parquet", "jsonl") for j in ("", ".json")
    }


@pytest.mark.parametrize(("model", "names"), [("nano", {"s1", "s2"}), ("gpt2", {"lm"})])
def test_other_families(folder, tmp_path, model, names, capsys):
    output = tmp_path / "out.jsonl"
    assert score(folder, folder / "texts.jsonl", f"output={output}", "include_text=false", *TABLE, model=model) == 0
    rows = list(read_table(output))
    assert {name.removesuffix("_log_prob") for name in rows[0] if name.endswith("_log_prob")} == names
    assert "text" not in rows[0]
    window = {"nano": "window of 16 tokens (the rows", "gpt2": "window of 64 tokens (the positions"}[model]
    assert window in capsys.readouterr().out


def test_standard_input_and_the_beginning_of_documents(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(TEXTS) + "\n"))
    output = tmp_path / "out.jsonl"
    options = ["documents=9", "document_bytes=16", "seed=5", "method=none"]
    assert score(folder, "-", f"output={output}", *options) == 0
    rows = list(read_table(output))
    ids = [row["id"] for row in rows]
    assert len(ids) == 9
    assert ids == sorted(ids)
    assert [row["text"] for row in rows] == [TEXTS[i] for i in ids]  # whole, though the beginning was scored
    assert [row["num_tokens"] for row in rows] == [max(0, min(16, len(TEXTS[i])) - 1) for i in ids]


def test_the_parts_of_a_runs_corpus(folder, tmp_path):
    for part in ("held_out", "train", "all"):
        corpus = [f"data.corpus={folder / 'corpus.txt'}"] if part == "all" else []
        output = f"output={tmp_path / part}.jsonl"
        assert score(folder, output, f"part={part}", "method=none", *corpus) == 0
    own = load_corpus(folder / "corpus.txt", held_out_fraction=0.3, seed=3)
    texts = {
        part: [row["text"] for row in read_table(tmp_path / f"{part}.jsonl")] for part in ("held_out", "train", "all")
    }
    assert texts["held_out"] == own.held_out["text"]
    assert texts["train"] == own.train["text"]
    assert sorted(texts["all"]) == sorted([*own.train["text"], *own.held_out["text"]])
    ids = [row["id"] for row in read_table(tmp_path / "all.jsonl")]
    assert len(set(ids)) == len(ids)
    assert all(str(name).startswith("corpus.txt:") for name in ids)


# -------------------------------------------------------------------------------------------- interruption, continuation


SMALL_PARTS = ["batch_size=1", "tokens=true"]  # parts of 32 tokens


@pytest.fixture(scope="module")
def uninterrupted(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    for suffix in ("jsonl", "parquet"):
        assert score(folder, folder / "texts.jsonl", f"output={out / 'out'}.{suffix}", *TABLE, *SMALL_PARTS) == 0
    return out


@pytest.fixture
def interrupted(folder, tmp_path, monkeypatch, capsys):
    """Output of a run that ended in its fourth part."""
    output, scores, calls = tmp_path / "out.jsonl", DocumentScorer.scores, []

    def scores_or_stop(self, documents, advance):
        calls.append(len(documents))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return scores(self, documents, advance)

    with monkeypatch.context() as patch:
        patch.setattr(DocumentScorer, "scores", scores_or_stop)
        assert score(folder, folder / "texts.jsonl", f"output={output}", *TABLE, *SMALL_PARTS) == 130
    assert not output.exists()
    assert f"{sum(calls[:3])} of 42 documents are done and kept in {output}.partial" in capsys.readouterr().err
    return output


def test_an_interrupted_run_is_continued_to_the_same_bytes(folder, interrupted, uninterrupted, monkeypatch, capsys):
    pytest.importorskip("pyarrow")
    rows = interrupted.parent / "out.jsonl.partial" / "rows.jsonl"
    lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    half = json.loads(lines[0]) | {"end_of_part": False}
    rows.write_text("".join(lines) + json.dumps(half) + '\n{"num_tokens": 3', encoding="utf-8")  # a part half written
    scored, scores = [], DocumentScorer.scores

    def counted(self, documents, advance):
        scored.append(len(documents))
        return scores(self, documents, advance)

    monkeypatch.setattr(DocumentScorer, "scores", counted)
    assert score(folder, folder / "texts.jsonl", f"output={interrupted}", *TABLE, *SMALL_PARTS) == 0
    assert sum(scored) == 42 - len(lines)
    assert f"continuing after {len(lines)} of 42" in capsys.readouterr().err
    for name in ("out.jsonl", "out.jsonl.json"):
        assert (interrupted.parent / name).read_bytes() == (uninterrupted / name).read_bytes()
    assert not (interrupted.parent / "out.jsonl.partial").exists()


def test_a_killed_run_loses_nothing_that_was_done(folder, uninterrupted, tmp_path):
    pytest.importorskip("pyarrow")
    output = tmp_path / "out.parquet"
    arguments = ["score", str(folder / "texts.jsonl"), f"output={output}", *TABLE, *SMALL_PARTS]
    arguments += [f"checkpoint={folder / 'monarc'}", "device=cpu"]
    code = (
        "import sys, time\nfrom hf_elm.document_scores import DocumentScorer\nfrom hf_elm.command_line import main\n"
        "whole = DocumentScorer.scores\n"
        "DocumentScorer.scores = lambda *a: (time.sleep(0.2), whole(*a))[1]\nmain(sys.argv[1:])\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.DEVNULL)
    rows = tmp_path / "out.parquet.partial" / "rows.jsonl"
    try:
        while run.poll() is None and (not rows.exists() or rows.read_bytes().count(b"\n") < 5):
            time.sleep(0.02)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    done = rows.read_text(encoding="utf-8").splitlines()
    assert 5 <= len(done) < 42
    assert main([*arguments, "progress=false"]) == 0
    assert output.read_bytes() == (uninterrupted / "out.parquet").read_bytes()


@pytest.mark.parametrize(
    ("change", "named"),
    [("window=8", "window is 16 there and 8 here"), ("tokens=false", "tokens is True"), ("method=none", "scoring.")],
)
def test_changed_settings_are_refused(folder, interrupted, capsys, change, named):
    arguments = [folder / "texts.jsonl", f"output={interrupted}", f"checkpoint={folder / 'monarc'}", "device=cpu"]
    error = fails(capsys, *arguments, *TABLE, *SMALL_PARTS, change)
    assert f"{interrupted}.partial holds an interrupted run that differs" in error
    assert named in error


def test_changed_texts_and_weights_are_refused(folder, interrupted, tmp_path, capsys):
    options = [f"output={interrupted}", "device=cpu", *TABLE, *SMALL_PARTS]
    other = fails(capsys, folder / "texts.jsonl", f"checkpoint={folder / 'other'}", "window=16", *options)
    assert "weights_sha256" in other
    changed = tmp_path / "changed.jsonl"
    changed.write_text((folder / "texts.jsonl").read_text().replace("snow or", "snow in"), encoding="utf-8")
    assert "text_sha256" in fails(capsys, changed, f"checkpoint={folder / 'monarc'}", *options)


# ----------------------------------------------------------------------------------------------------------------- errors


def test_wrong_input_is_one_clear_line(folder, tmp_path, capsys):
    texts, output, model = (
        folder / "texts.jsonl",
        f"output={tmp_path / 'out.jsonl'}",
        f"checkpoint={folder / 'monarc'}",
    )
    (tmp_path / "there.jsonl").write_text("")
    (tmp_path / "left.jsonl.json").write_text("{}")
    (tmp_path / "lines.txt").write_text("a line\n")
    (tmp_path / "same.jsonl").write_text('{"text": "or so", "num_bytes": 5}\n')
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "config.json").write_text('{"model_type": "m2_bert"}')
    cases = [
        ((model, output), "needs an INPUT"),
        ((texts, output), "needs checkpoint="),
        ((texts, model), "needs output="),
        ((texts, model, output, "data.corpus=stdlib"), "not both"),
        ((texts, model, output, "part=held_out"), "part=held_out is of data.corpus"),
        ((model, output, "data.corpus=stdlib", "part=some"), "part must be one of"),
        ((model, output, "data.corpus=stdlib", "keep=[x]"), "keep concerns tables"),
        ((texts, model, f"output={tmp_path / 'out.csv'}"), 'unknown suffix ".csv"; known are .parquet, .jsonl'),
        ((texts, model, f"output={tmp_path / 'there.jsonl'}"), "there.jsonl exists"),
        ((texts, model, f"output={tmp_path / 'left.jsonl'}"), "left.jsonl.json, the record of"),
        ((texts, model, output, "windw=8"), 'the nearest valid key is "window"'),
        ((texts, model, output, "window=1"), "window must be at least 2"),
        ((texts, model, output, "method=fast"), "method must be one of auto, exact, sampled, certified, none"),
        ((texts, model, output, "documents=-1"), "documents must be at least 1"),
        ((texts, model, output, "document_bytes=3"), "document_bytes must be at least 16"),
        ((texts, model, output, "think_steps=2"), "think_steps does not concern a monarc model"),
        ((texts, f"checkpoint={folder / 'gpt2'}", output, "method=exact"), "method does not concern a gpt2 model"),
        ((texts, f"checkpoint={tmp_path / 'encoder'}", output), "an encoder; score takes causal models"),
        ((texts, f"checkpoint={tmp_path / 'none'}", output), "none does not exist"),
        ((texts, model, output), "text_column='text' is not in row 0"),
        ((texts, model, output, "text_column=body", "keep=[colour]"), "keep='colour' is not in row 0"),
        ((tmp_path / "lines.txt", model, output, "keep=[colour]"), "has no columns"),
        ((tmp_path / "same.jsonl", model, output, "keep=[num_bytes]"), "name of a column of the scores"),
        ((tmp_path / "nowhere.txt", model, output), "nowhere.txt does not exist"),
        ((model, output, f"data.corpus={tmp_path / 'nowhere.txt'}"), "no such file"),
    ]
    for arguments, message in cases:
        assert message in fails(capsys, *arguments), arguments
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("out.")]
