"""`hf-elm embed`: what it reads and writes, interruption and continuation, and its errors."""

import csv
import gzip
import io
import json

import numpy as np
import pytest

from hf_elm import embedding_run
from hf_elm.command_line import main
from hf_elm.embedding import TextEmbedder, embed_texts
from hf_elm.embedding_models import load_embedder
from hf_elm.modeling.m2_bert import M2BertForMaskedLM
from tests.hf_elm.tiny_embedder import save_embedder, texts, tiny_tokenizer


TEXTS = texts(60)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedder")
    save_embedder(folder)
    return folder


@pytest.fixture(scope="module")
def expected(checkpoint):
    """The vectors of TEXTS, in the order and the batches of one part."""
    model, tokenizer = load_embedder(str(checkpoint), "cpu")
    return embed_texts(model, tokenizer, TEXTS)


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


def embed(checkpoint, *arguments):
    return main(["embed", *map(str, arguments), f"checkpoint={checkpoint}", "device=cpu", "progress=false"])


def fails(capsys, *arguments):
    """The one line of a refusal."""
    capsys.readouterr()
    assert main(["embed", *map(str, arguments)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-elm")]
    assert len(errors) == 1
    return errors[0]


# ----------------------------------------------------------------------------------------------- what is read and written


def test_lines_to_an_array(checkpoint, expected, lines, tmp_path, capsys):
    assert embed(checkpoint, lines, f"output={tmp_path / 'out.npy'}") == 0
    assert "60 texts as vectors of 32 dimensions" in capsys.readouterr().out
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)
    assert {path.name for path in tmp_path.iterdir()} == {"texts.txt", "out.npy"}


def test_standard_input_with_a_prompt(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("a token\nenergy\r\n"))
    assert embed(checkpoint, "-", f"output={tmp_path / 'out.npy'}", "prompt=the text ", "truncate_dim=3") == 0
    model, tokenizer = load_embedder(str(checkpoint), "cpu")
    own = embed_texts(model, tokenizer, ["the text a token", "the text energy"], truncate_dim=3)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), own)


def table(path, rows):
    """``rows`` as the kind of table that the suffix names."""
    if ".jsonl" in path.name:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    elif path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        return parquet.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path)
    else:
        file = io.StringIO()
        writer = csv.DictWriter(file, rows[0], delimiter="\t" if ".tsv" in path.name else ",")
        writer.writeheader()
        writer.writerows(rows)
        content = file.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("name", ["in.jsonl", "in.jsonl.gz", "in.csv", "in.tsv.gz", "in.parquet"])
def test_tables_to_tables(checkpoint, expected, tmp_path, name):
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"key": f"d{i}", "body": text, "other": i} for i, text in enumerate(TEXTS)]
    table(tmp_path / name, rows)
    options = ["text_column=body", "id_column=key", "include_text=true"]
    for suffix in ("parquet", "jsonl"):
        assert embed(checkpoint, tmp_path / name, f"output={tmp_path / 'out'}.{suffix}", *options) == 0
    written = parquet.read_table(tmp_path / "out.parquet")
    assert written.column_names == ["id", "text", "embedding"]
    same = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    for found in (written.to_pylist(), same):
        assert [row["id"] for row in found] == [row["key"] for row in rows]
        assert [row["text"] for row in found] == TEXTS
        vectors = np.asarray([row["embedding"] for row in found], dtype=np.float32)
        np.testing.assert_array_equal(vectors, expected)  # every bit, in JSON too


def test_folders_and_several_inputs(checkpoint, lines, tmp_path):
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.txt").write_text("a token\nis lower", encoding="utf-8")
    (folder / "deep" / "a.md").write_text("energy", encoding="utf-8")
    (folder / ".hidden").write_text("far", encoding="utf-8")
    assert embed(checkpoint, folder, f"output={tmp_path / 'docs.jsonl'}", "include_text=true") == 0
    rows = [json.loads(line) for line in (tmp_path / "docs.jsonl").read_text().splitlines()]
    assert [(row["id"], row["text"]) for row in rows] == [("b.txt", "a token\nis lower"), ("deep/a.md", "energy")]
    assert embed(checkpoint, folder, lines, f"output={tmp_path / 'both.jsonl'}") == 0
    rows = [json.loads(line) for line in (tmp_path / "both.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows][1:3] == [f"{folder}:deep/a.md", f"{lines}:0"]
    assert rows[0].keys() == {"id", "embedding"}


def test_long_texts(checkpoint, tmp_path, capsys):
    (tmp_path / "long.txt").write_text("energy\n" + "token " * 100, encoding="utf-8")
    arguments = [tmp_path / "long.txt", f"checkpoint={checkpoint}", f"output={tmp_path / 'out.npy'}", "device=cpu"]
    error = fails(capsys, *arguments)
    assert "text 1 has 102 tokens, more than max_length = 64" in error
    assert "cut them by truncate=True" in error
    assert [path.name for path in tmp_path.iterdir()] == ["long.txt"]  # refused before anything was begun
    assert main(["embed", *map(str, arguments), "truncate=True"]) == 0
    assert "2 texts, 1 of them cut, as vectors" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------- interruption, continuation


SMALL_PARTS = "tokens_per_batch=8"  # parts of 16 texts or fewer


@pytest.fixture
def interrupted(checkpoint, lines, tmp_path, monkeypatch, capsys):
    """(output, arguments) of a run that ended in its third part."""
    output, embed_rows, calls = tmp_path / "out.parquet", TextEmbedder.embed, []

    def embed_or_stop(self, rows, advance):
        calls.append(len(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed_rows(self, rows, advance)

    with monkeypatch.context() as patch:
        patch.setattr(TextEmbedder, "embed", embed_or_stop)
        assert embed(checkpoint, lines, f"output={output}", SMALL_PARTS) == 130
    assert not output.exists()
    message = f"{sum(calls[:2])} of 60 texts are done and kept in {output}.partial; the same command continues"
    assert message in capsys.readouterr().err
    return output, calls


def test_an_interrupted_run_is_continued_bit_for_bit(interrupted, checkpoint, lines, tmp_path, monkeypatch, capsys):
    output, calls = interrupted
    parquet = pytest.importorskip("pyarrow.parquet")
    done = sum(calls[:2])
    with open(f"{output}.partial/vectors.npy", "ab") as file:
        file.write(b"half a row")  # of the part that was not finished
    embedded, embed_rows = [], TextEmbedder.embed

    def counted(self, rows, advance):
        embedded.append(len(rows))
        return embed_rows(self, rows, advance)

    monkeypatch.setattr(TextEmbedder, "embed", counted)
    assert embed(checkpoint, lines, f"output={output}", SMALL_PARTS) == 0
    assert sum(embedded) == 60 - done
    assert f"continuing after {done} of 60" in capsys.readouterr().err
    assert embed(checkpoint, lines, f"output={tmp_path / 'whole.npy'}", SMALL_PARTS) == 0
    found = np.stack(parquet.read_table(output)["embedding"].to_numpy())
    np.testing.assert_array_equal(found, np.load(tmp_path / "whole.npy"))
    assert not (tmp_path / "out.parquet.partial").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("prompt=x", "prompt is '' there and 'x'"),
        ("pooling=mean", "pooling is 'cls'"),
        ("truncate=true", "truncate is"),
    ],
)
def test_changed_settings_are_refused(interrupted, checkpoint, lines, capsys, change, named):
    output, _ = interrupted
    arguments = [lines, f"checkpoint={checkpoint}", f"output={output}", "device=cpu"]
    error = fails(capsys, *arguments, change)
    assert f"{output}.partial holds an interrupted run that differs" in error
    assert named in error
    assert "remove" in error


def test_changed_texts_and_weights_are_refused(interrupted, lines, tmp_path, checkpoint, capsys):
    output, _ = interrupted
    save_embedder(tmp_path / "other", filter_freq=9.0)
    error = fails(capsys, lines, f"checkpoint={tmp_path / 'other'}", f"output={output}", "device=cpu")
    assert "config_digest" in error or "model_digest" in error
    lines.write_text(lines.read_text().replace("energy", "token", 1), encoding="utf-8")
    assert "text_digest" in fails(capsys, lines, f"checkpoint={checkpoint}", f"output={output}", "device=cpu")
    (tmp_path / "out.parquet.partial" / "vectors.npy").write_bytes(b"")
    lines.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    assert "damaged" in fails(capsys, lines, f"checkpoint={checkpoint}", f"output={output}", "device=cpu")


def test_parts_end_at_the_same_places_after_an_interruption(checkpoint):
    model, tokenizer = load_embedder(str(checkpoint), "cpu")
    embedder = TextEmbedder(model, tokenizer, tokens_per_batch=8)
    parts = list(embedding_run._parts(embedder, TEXTS, 0))
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == len(TEXTS)
    assert len(parts) >= 4
    assert list(embedding_run._parts(embedder, TEXTS, parts[1].stop)) == parts[2:]


# ----------------------------------------------------------------------------------------------------------------- errors


def test_wrong_input_is_one_clear_line(checkpoint, lines, tmp_path, capsys):
    output, model = f"output={tmp_path / 'out.npy'}", f"checkpoint={checkpoint}"
    (tmp_path / "there.npy").write_bytes(b"")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text"\n')
    (tmp_path / "null.jsonl").write_text('{"text": "a"}\n{"text": null}\n')
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "zip.txt.gz").write_bytes(b"no gzip")
    (tmp_path / "folder").mkdir()
    (tmp_path / "monarc").mkdir()
    (tmp_path / "monarc" / "config.json").write_text('{"model_type": "monarc"}')
    save_embedder(tmp_path / "mlm", M2BertForMaskedLM)
    cases = [
        ((model, output), "needs an INPUT"),
        ((lines, output), "needs checkpoint="),
        ((lines, model), "needs output="),
        ((lines, model, f"output={tmp_path / 'out.npz'}"), 'unknown suffix ".npz"; known are .npy, .parquet, .jsonl'),
        ((lines, model, f"output={tmp_path / 'there.npy'}"), "there.npy exists"),
        ((lines, model, output, "poling=cls"), 'the nearest valid key is "pooling"'),
        ((lines, model, output, "pooling=max"), "pooling must be one of"),
        ((lines, f"checkpoint={tmp_path / 'monarc'}", output), "a monarc model; embed needs an m2_bert encoder"),
        ((lines, f"checkpoint={tmp_path / 'mlm'}", output), "no weights for the pooler"),
        ((lines, f"checkpoint={tmp_path / 'none'}", output), "none does not exist"),
        ((tmp_path / "nowhere.txt", model, output), "nowhere.txt does not exist"),
        ((tmp_path / "there.npy", model, output), 'unknown suffix ".npy"'),
        ((tmp_path / "empty.txt", model, output), "no texts in"),
        ((tmp_path / "folder", model, output), "holds no files"),
        ((tmp_path / "bad.jsonl", model, output), "line 2 is not JSON"),
        ((tmp_path / "null.jsonl", model, output), "the row with id 1 has no text in 'text' but None"),
        ((tmp_path / "null.jsonl", model, output, "text_column=body"), "text_column='body' is not in row 0"),
        ((tmp_path / "null.jsonl", model, output, "id_column=key"), "id_column='key' is not in row 0"),
        ((tmp_path / "latin.txt", model, output), "not UTF-8"),
        ((tmp_path / "zip.txt.gz", model, output), "not a readable gzip"),
        ((lines, model, output, "device=abacus"), 'device="abacus"'),
        ((lines, model, output, "dtype=int3"), "dtype must be one of"),
    ]
    for arguments, message in cases:
        assert message in fails(capsys, *arguments)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("out.")]


def test_a_model_without_pooler_embeds_by_the_mean(tmp_path, lines):
    save_embedder(tmp_path / "mlm", M2BertForMaskedLM, tiny_tokenizer())
    output = tmp_path / "out.npy"
    assert embed(tmp_path / "mlm", lines, f"output={output}", "pooling=mean", "pool_with_dense=false") == 0
    assert np.load(output).shape == (60, 32)


def test_parquet_without_pyarrow_names_the_extra(checkpoint, lines, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    error = fails(capsys, lines, f"checkpoint={checkpoint}", f"output={tmp_path / 'out.parquet'}")
    assert 'pip install "hf_elm[retrieval]"' in error
