"""Corpora: every source, a split that does not leak and does not move, and refusals that say what to do."""

import gzip
import json
import os

import pytest
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from hf_elm.trainers import corpora, corpus_sources
from hf_elm.trainers.corpora import load_corpus


def texts(part):
    return [row["text"] for row in part]


def size(part):
    return sum(len(row["text"].encode()) for row in part)


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return str(folder)


def documents(count, offset=0):
    return [f"document number {i} " * 20 for i in range(offset, offset + count)]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def stdlib():
    return load_corpus()


def test_stdlib_is_library_and_manual_split_by_file(stdlib):
    train, held_out = stdlib.train["source"], stdlib.held_out["source"]
    assert not set(train) & set(held_out)
    assert not set(stdlib.train["text"]) & set(stdlib.held_out["text"])
    names = [*train, *held_out]
    assert {"json/decoder.py", "pydoc_data/topics/assignment"} <= {*names}
    assert not any(os.path.isabs(name) or "\\" in name for name in names)
    assert not [name for name in names if {"test", "tests", "idlelib", "site-packages"} & {*name.split("/")}]
    assert list(train) == sorted(train)
    assert 5e6 < size(stdlib.train) < 3e7
    assert 0.025 < size(stdlib.held_out) / size(stdlib.train) < 0.1
    assert stdlib.name.startswith("Python 3.")


def test_stdlib_does_not_depend_on_the_file_system(stdlib, monkeypatch):
    found = corpus_sources.Path.rglob
    monkeypatch.setattr(corpus_sources.Path, "rglob", lambda self, pattern: reversed(list(found(self, pattern))))
    assert load_corpus().train[:50] == stdlib.train[:50]


def test_max_bytes_keeps_whole_documents_on_their_sides(stdlib):
    small = load_corpus(max_bytes=200_000)
    assert set(small.train["source"]) < set(stdlib.train["source"])
    assert set(small.held_out["source"]) < set(stdlib.held_out["source"])
    assert 0.8 * 190_000 < size(small.train) <= 190_000
    assert 0.5 * 10_000 < size(small.held_out) <= 10_000
    assert load_corpus(max_bytes=200_000, seed=1).held_out["source"] != small.held_out["source"]


def test_folder_is_split_by_file_and_a_new_file_moves_none(tmp_path):
    folder = write(tmp_path / "texts", **{f"part_{i}": text for i, text in enumerate(documents(200))})
    before = load_corpus(folder, held_out_fraction=0.2)
    assert 20 <= len(before.held_out) <= 60
    assert before.train.column_names == ["text", "source"]
    write(tmp_path / "texts", added="another document", part_0_b="and one in between")
    os.makedirs(os.path.join(folder, ".git"))
    write(tmp_path / "texts" / ".git", hidden="not counted")
    after = load_corpus(folder, held_out_fraction=0.2)
    assert (
        {*before.held_out["source"]}
        <= {*after.held_out["source"]}
        <= {*before.held_out["source"], "added.txt"} | {"part_0_b.txt"}
    )
    assert len(after.train) + len(after.held_out) == 202
    again = load_corpus(os.path.join(folder, "**", "*.txt"), held_out_fraction=0.2)
    assert again.held_out["source"] == after.held_out["source"], "a glob names files as its folder does"


def test_a_small_folder_still_holds_something_out(tmp_path):
    corpus = load_corpus(write(tmp_path / "texts", a="alpha", b="beta"), held_out_fraction=0.01)
    assert (len(corpus.train), len(corpus.held_out)) == (1, 1)


def test_files_that_name_their_split_are_not_mixed(tmp_path):
    folder = write(tmp_path / "texts", train="to learn", test="to test", valid="to validate")
    corpus = load_corpus(folder)
    assert (texts(corpus.train), texts(corpus.held_out)) == (["to learn"], ["to validate"])
    write(tmp_path / "texts", notes="of no split")
    assert len(load_corpus(folder).train) + len(load_corpus(folder).held_out) == 4


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_text_file_is_cut_without_loss_and_ends_held_out(tmp_path, line_end):
    text = line_end.join(f"line {i}" + line_end * (i % 10 == 0) for i in range(40_000))
    path = tmp_path / "novel.txt"
    path.write_bytes(text.encode())
    corpus = load_corpus(path, held_out_fraction=0.1)
    blocks = [*texts(corpus.train), *texts(corpus.held_out)]
    assert "".join(blocks) == text
    assert 0.09 < size(corpus.held_out) / len(text) < 0.13
    assert all(8192 <= len(block) <= 16384 for block in blocks[:-1])
    assert all(block.endswith(2 * line_end) for block in blocks[:-1]), "cut at blank lines"
    small = load_corpus(path, held_out_fraction=0.1, max_bytes=200_000)
    assert text.startswith("".join(texts(small.train)))
    assert size(small.train) <= 180_000


def test_text_file_without_line_ends_is_cut_at_words(tmp_path):
    path = tmp_path / "text8.txt"
    path.write_text("word " * 50_000)
    blocks = [text for part in (load_corpus(path).train, load_corpus(path).held_out) for text in texts(part)]
    assert "".join(blocks) == "word " * 50_000
    assert {block[-5:] for block in blocks} == {"word "}


def test_marks_divide_a_text_file_into_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_sources, "CHUNK_CHARS", 700)  # marks and documents run over the ends of what is read
    path = tmp_path / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(documents(60)))
    corpus = load_corpus(path, held_out_fraction=0.1)
    assert [*texts(corpus.train), *texts(corpus.held_out)] == documents(60)
    assert len(corpus.held_out) == 6


def test_a_file_that_changed_is_read_again(tmp_path):
    path = tmp_path / "novel.txt"
    for text in ("first " * 200, "second " * 200):
        path.write_text(text)
        assert load_corpus(path).train[0]["text"].startswith(text[:6])


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "tsv", "parquet", "json"])
def test_tables_are_split_by_text(tmp_path, kind):
    path = tmp_path / ("rows.jsonl.gz" if kind == "jsonl.gz" else f"rows[1].{kind}")  # brackets are no glob here
    table = Dataset.from_dict({"content": [*documents(50), *documents(50), "", " \n"], "id": list(range(102))})
    {
        "jsonl": table.to_json,
        "json": table.to_json,
        "jsonl.gz": lambda p: path.write_bytes(gzip.compress("\n".join(map(json.dumps, table)).encode())),
        "csv": table.to_csv,
        "tsv": lambda p: table.to_csv(p, sep="\t"),
        "parquet": table.to_parquet,
    }[kind](str(path))
    corpus = load_corpus(path, text_column="content", held_out_fraction=0.2)
    assert not set(texts(corpus.train)) & set(texts(corpus.held_out)), "copies stay on one side"
    assert sorted(texts(corpus.train) + texts(corpus.held_out)) == sorted(documents(50) * 2)
    assert len(corpus.held_out) > 0


def test_tables_in_a_folder_are_split_by_file(tmp_path):
    for i in range(30):
        write_rows(tmp_path / f"shard-{i}.jsonl", [{"text": text} for text in documents(3, offset=3 * i)])
    corpus = load_corpus(tmp_path, held_out_fraction=0.2)
    assert not set(corpus.train["source"]) & set(corpus.held_out["source"])
    assert len(corpus.train) + len(corpus.held_out) == 90


def test_saved_datasets_keep_their_own_splits(tmp_path):
    train, test = Dataset.from_dict({"body": documents(9)}), Dataset.from_dict({"body": documents(2, offset=9)})
    DatasetDict(train=train, test=test).save_to_disk(tmp_path / "both")
    corpus = load_corpus(tmp_path / "both", text_column="body")
    assert (texts(corpus.train), texts(corpus.held_out)) == (documents(9), documents(2, offset=9))
    train.save_to_disk(tmp_path / "one")
    corpus = load_corpus(tmp_path / "one", text_column="body", held_out_fraction=0.3)
    assert sorted(texts(corpus.train) + texts(corpus.held_out)) == documents(9)


@pytest.fixture
def hub(monkeypatch):
    """A Hub of one dataset, as `datasets.load_dataset` would open it; returns its splits."""
    splits = {"train": documents(50)}

    def load_dataset(source, config_name, streaming):
        assert (source, config_name) == ("someone/stories", "small")
        tables = {name: Dataset.from_dict({"id": list(range(len(t))), "body": t}) for name, t in splits.items()}
        if not streaming:
            return DatasetDict(tables)
        return IterableDatasetDict({name: table.to_iterable_dataset() for name, table in tables.items()})

    monkeypatch.setattr(corpus_sources, "load_dataset", load_dataset)
    return splits


def from_hub(**options):
    return load_corpus("someone/stories", **{"config_name": "small", "text_column": "body", **options})


def test_a_stream_holds_its_first_documents_out(hub, monkeypatch):
    monkeypatch.setattr(corpora, "STREAM_HELD_OUT", 4)
    hub["train"] = ["", *documents(50)]
    corpus = from_hub()
    assert corpus.name == "someone/stories/small"
    assert isinstance(corpus.train, IterableDataset)
    assert texts(corpus.held_out) == documents(4)
    assert texts(corpus.train) == documents(46, offset=4)


def test_a_stream_that_is_too_short_is_refused(hub):
    with pytest.raises(ValueError, match="streaming=False splits it by text"):
        from_hub()
    corpus = from_hub(streaming=False)
    assert sorted(texts(corpus.train) + texts(corpus.held_out)) == sorted(documents(50))


@pytest.mark.parametrize("streaming", [True, False])
def test_a_dataset_s_own_held_out_split_is_used(hub, streaming):
    hub["test"], hub["validation"] = documents(5, offset=60), documents(5, offset=70)
    corpus = from_hub(streaming=streaming)
    assert texts(corpus.train) == documents(50)
    assert texts(corpus.held_out) == documents(5, offset=70)
    small = from_hub(streaming=streaming, max_bytes=8000, held_out_fraction=0.25)
    assert isinstance(small.train, Dataset)
    assert 4000 < size(small.train) <= 6000
    assert 1000 < size(small.held_out) <= 2000


def test_columns_and_splits_that_are_not_there_are_named(hub):
    with pytest.raises(ValueError, match=r"text_column='bod'.*\['id', 'body'\]. Did you mean 'body'"):
        from_hub(text_column="bod")
    with pytest.raises(ValueError, match=r"text_column='id' must hold text, but it holds .*int64"):
        from_hub(text_column="id")
    with pytest.raises(ValueError, match=r"split='trian' is not a split.*\['train'\]"):
        from_hub(split="trian")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"held_out_fraction": 0}, "held_out_fraction must lie strictly between 0 and 1, got 0"),
        ({"held_out_fraction": 1.0}, "held_out_fraction"),
        ({"max_bytes": 0}, "max_bytes must be positive"),
        ({"max_bytes": 20}, "max_bytes leaves .* raise max_bytes"),
        ({"source": "stdlb"}, "Did you mean 'stdlib'"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        load_corpus(**options)


def test_paths_that_do_not_exist(tmp_path):
    write(tmp_path, shakespeare="to be")
    with pytest.raises(FileNotFoundError, match=r"no such file or folder. Did you mean '.*shakespeare\.txt'"):
        load_corpus(tmp_path / "shakespear.txt")
    with pytest.raises(FileNotFoundError, match="no files"):
        load_corpus(tmp_path / "*.csv")


def test_files_that_are_no_corpus(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "image.txt").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": oops\n')
    write_rows(tmp_path / "single.jsonl", [{"text": "the same"}, {"text": "the same"}])
    for name, message in {
        "empty.txt": "0 documents with text",
        "image.txt": "image.txt is a binary file",
        "latin.txt": "latin.txt is not UTF-8",
        "broken.jsonl": "broken.jsonl cannot be read as json",
        "single.jsonl": "at least two different texts",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_corpus(tmp_path / name)
    with pytest.raises(ValueError, match="mixes json and text files"):
        load_corpus(tmp_path)
