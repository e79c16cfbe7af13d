"""Corpora that a fuzz run found to end in a traceback: each is refused by a sentence that names the file, or read."""

import json
import os

import datasets
import pytest

from hf_elm.command_line import main
from hf_elm.trainers.beir_folders import read_beir
from hf_elm.trainers.corpora import load_corpus
from hf_elm.trainers.pair_corpora import load_pairs
from hf_elm.trainers.prepared_rows import load_prepared


LINES = "some words, line by line.\n" * 300


@pytest.mark.parametrize("load", [load_corpus, load_pairs])
def test_an_empty_table_says_that_it_is_empty(tmp_path, load):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"empty\.jsonl has no rows that can be read as json"):
        load(tmp_path / "empty.jsonl")


@pytest.mark.parametrize("content", [b"", b"text,id\n,", b'[{"text": 1}]', b"\x1f\x8b\x08"])
def test_a_damaged_saved_dataset_is_named(tmp_path, content):
    (tmp_path / "dataset_dict.json").write_bytes(content)
    with pytest.raises(ValueError, match="save_to_disk"):
        load_corpus(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="names of files are text there")
def test_a_file_name_that_is_not_utf_8_is_no_hindrance(tmp_path):
    for name in (b"\xff.txt", b"plain.txt"):
        (tmp_path / os.fsdecode(name)).write_text(LINES)
    corpus = load_corpus(tmp_path, held_out_fraction=0.5)
    assert sorted([*corpus.train["source"], *corpus.held_out["source"]]) == ["\\udcff.txt", "plain.txt"]


def test_rows_that_have_no_python_value_are_named(tmp_path, monkeypatch):
    """Which values those are depends on the packages beside `datasets`."""

    def broken(self, row):
        raise UnicodeDecodeError("utf-8", b"x", 0, 1, "no value")

    (tmp_path / "pairs.jsonl").write_text('{"query": "a", "positive": "b"}\n' * 2)
    monkeypatch.setattr(datasets.formatting.PythonFormatter, "format_row", broken)
    with pytest.raises(ValueError, match=r"pairs\.jsonl, row 0 cannot be read: .*no value"):
        load_pairs(tmp_path / "pairs.jsonl")


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/train.tsv"])
@pytest.mark.parametrize("content", [b"z\xe4", b"[" * 100_000, "q\td\t1".encode("utf-16")])
def test_a_damaged_file_of_a_beir_folder_is_named(tmp_path, name, content):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d", "text": "one"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "two"}\n')
    (tmp_path / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    assert len(read_beir(tmp_path, "train")) == 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        read_beir(tmp_path, "train")


def test_a_refused_preparation_leaves_no_folder(tmp_path, capsys):
    """The folder of a refused call would have held its wrong settings, and refused the right ones."""
    arguments = ["prepare", f"output={tmp_path / 'rows'}", "data.sequence_length=16", "progress=false"]
    assert main([*arguments, f"data.corpus={tmp_path / 'missing.txt'}"]) == 2
    assert "missing.txt" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "text.txt").write_text(LINES)
    assert main([*arguments, f"data.corpus={tmp_path / 'text.txt'}"]) == 0


@pytest.mark.parametrize(
    "edit",
    [
        lambda manifest: manifest.pop("parts"),
        lambda manifest: manifest.update(settings=[]),
        lambda manifest: manifest["parts"]["train"].update(shards=7),
        lambda manifest: manifest["parts"]["train"]["shards"][0].update(file="../../text.txt"),
        lambda manifest: manifest["parts"]["train"]["shards"][0].update(file="/etc/passwd"),
        lambda manifest: manifest["parts"]["held_out"]["shards"][0].update(rows="many"),
    ],
)
def test_an_edited_manifest_is_refused_and_leads_nowhere(tmp_path, edit):
    part = {"shards": [{"file": "train/0.arrow", "size": 1, "rows": 1}]}
    settings = {"family": "monarc", "data": {}, "tokenizer": {}}
    manifest = {
        "corpus": "c",
        "settings": settings,
        "parts": {"train": part, "held_out": json.loads(json.dumps(part))},
    }
    edit(manifest)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        load_prepared(tmp_path)
