"""Corpora that are no corpora: refused by name and reason, or read; whatever is there stays as it is."""

import gzip
import io
import json
import os

import pytest
from datasets import Dataset
from hypothesis import strategies as st

from hf_elm.embedding_inputs import read_inputs
from hf_elm.trainers.beir_folders import read_beir
from hf_elm.trainers.corpora import load_corpus
from hf_elm.trainers.pair_corpora import load_pairs
from tests.fuzz.damage import BYTES, json_damage
from tests.fuzz.exploration import amounts, explore
from tests.fuzz.oracle import case_folder, refused, run_command
from tests.fuzz.values import ANY, TEXT, deep


WORDS = b"some words of a text that goes on, line by line.\n"
TEXTS = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(
        [
            b"",
            b" \n\n",
            b"a",
            b"\x00",
            b"a\x00b" * 100,
            WORDS * 300,
            WORDS.replace(b"\n", b"\r\n") * 300,
            b"x" * 300_000,
            b"<|endoftext|>" * 50,
            b"a<|endoftext|>b<|endoftext|>c",
            WORDS * 50 + b"\xff\xfe",
            "größe 日本\n".encode() * 200,
            "größe".encode("latin-1") * 200,
            "wörter\n".encode("utf-16") * 100,
            b"\xef\xbb\xbf" + WORDS * 100,
            b"\x1f\x8b" + WORDS,
            b"\r" * 5000,
            "\u2028\u2029\x85".encode() * 500,
            b"\xed\xa0\x80" * 10,
            "\U0001f600".encode() * 4000,
        ]
    ),
    st.integers(0, 400).map(lambda count: WORDS * count),
)
ROWS = st.lists(
    st.one_of(
        st.fixed_dictionaries({"text": st.one_of(TEXT, ANY)}),
        st.fixed_dictionaries({"text": TEXT, "id": ANY}),
        st.dictionaries(TEXT, ANY, max_size=2),
        ANY,
    ),
    max_size=6,
)


def as_json_lines(rows):
    return "\n".join(json.dumps(row) for row in rows).encode("utf-8", "surrogatepass")


def parquet(rows=6):
    buffer = io.BytesIO()
    Dataset.from_dict({"text": [f"document {i}" for i in range(rows)], "id": list(range(rows))}).to_parquet(buffer)
    return buffer.getvalue()


TABLES = st.one_of(
    ROWS.map(as_json_lines),
    ROWS.map(lambda rows: json.dumps(rows).encode("utf-8", "surrogatepass")),
    st.lists(TEXT, max_size=5).map(lambda lines: "\n".join(["text", *lines]).encode("utf-8", "replace")),
    st.lists(st.tuples(TEXT, TEXT), max_size=5).map(
        lambda rows: "\n".join(["text,id", *(",".join(row) for row in rows)]).encode("utf-8", "replace")
    ),
    st.integers(0, 100).map(lambda share: parquet()[: len(parquet()) * share // 100]),
    st.integers(0, 100).map(lambda share: gzip.compress(WORDS * 30)[: share + 1]),
    st.sampled_from(
        [
            b"",
            b"[]",
            b"{}",
            b"null",
            b'{"text": "a"}\n{"text": 1}\n',
            b'{"text": "a"}\n[]\n',
            b'{"text": "' + b"a" * 300_000 + b'"}\n',
            b"[" * 50_000,
            str(deep(300)).encode(),
            b'{"text": "a"}\n{"other": "b"}\n',
            b'{"text": ["a"]}\n{"text": ["b"]}\n',
            b'{"text": "a"',
            b"\xff\xfe\x00",
            b"text\n\n\n",
            b'text\n"open',
            b"text\ttext\na\tb\n",
            b"text,text\na,b\n",
            b"PAR1",
            b"ARROW1\x00\x00",
            b'{"text": "\\ud800"}\n{"text": "b"}\n',
            b'{"text": null}\n{"text": null}\n',
            b'{"text": NaN}\n',
            b'{"data": [{"text": "a"}]}',
        ]
    ),
)
NAMES = st.sampled_from(
    (
        "a.txt",
        "b.txt",
        "c.md",
        "train.txt",
        "test.txt",
        "a.jsonl",
        "b.jsonl",
        "a.json",
        "a.csv",
        "a.tsv",
        "a.parquet",
        "a.arrow",
        "a.jsonl.gz",
        "a.csv.bz2",
        "a.txt.gz",
        "[x].txt",
        "a b.txt",
        "größe.txt",
        "*.txt",
        "?.jsonl",
        "a\nb.txt",
        "-.txt",
        ".hidden",
        "${x}.txt",
        "sub/a.txt",
        "sub/train-0001.jsonl",
        "dataset_dict.json",
        "state.json",
        "manifest.json",
        "\udcff.txt",
        "x" * 200 + ".txt",
        "a.JSONL",
    )
)
SOURCES = (
    "text7",
    "text7/",
    "text7/*",
    "text7/**",
    "text7/*.jsonl",
    "text7/*.txt",
    "text7/a.txt",
    "text7/a.jsonl",
    "text7/[x].txt",
    "text7/no*",
    "no_such",
    "no/such",
    "no_such.txt",
    "~",
    "~/text7",
    ".",
    "*",
    "text7/a.csv",
    "text7/a.parquet",
    "",
    "text7//a.txt",
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "held_out_fraction": st.sampled_from((0.5, 0.05, 0.999, 0, 1, -1, float("nan"), float("inf"))),
        "max_bytes": st.sampled_from((1, 10, 1000, 0, -1, 2**70)),
        "text_column": st.sampled_from(("text", "id", "", "no such", "größe")),
        "split": st.sampled_from(("train", "test", "", "no")),
        "seed": st.sampled_from((0, 1, -1, 2**63)),
    },
)


def write_tree(folder, files, odd):
    """The files below text7, and what else may stand in a folder: links in circles, dangling links, an empty folder."""
    root = folder / "text7"
    root.mkdir()
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    if odd == "loop":
        (root / "loop").symlink_to(".")
    elif odd == "dangling":
        (root / "dangling.txt").symlink_to("nowhere")
    elif odd == "itself":
        (root / "itself.txt").symlink_to("itself.txt")
    elif odd == "folder":
        (root / "folder.txt").mkdir()
    elif odd == "pipe":
        os.mkfifo(root / "pipe.txt")


TREES = st.dictionaries(NAMES, st.one_of(TEXTS, TABLES), max_size=3)
ODD = st.sampled_from(("", "", "", "loop", "dangling", "itself", "folder", "pipe"))


def check_corpus(files, odd, source, options):
    with case_folder() as folder:
        write_tree(folder, files, odd)
        folder.remember()
        names = [
            "text7",
            "source",
            str(folder.root),
            source or "''",
            *map(str, options),
            *(os.path.basename(name) for name in files),
        ]

        def read():
            corpus = load_corpus(source, streaming=False, **options)
            for part in (corpus.train, corpus.held_out):
                assert all(isinstance(row["text"], str) and row["text"].strip() for row in part)

        refused(read, names, (files, odd, source, options))
        folder.assert_kept(also_nothing_new=True)


@amounts(few=25, many=330)
def test_a_corpus_is_refused_by_name_or_read(amount):
    explore("corpora", check_corpus, amount, files=TREES, odd=ODD, source=st.sampled_from(SOURCES), options=OPTIONS)


def check_training_text(files, odd, source):
    with case_folder() as folder:
        write_tree(folder, files, odd)
        arguments = ["prepare", "output=rows7", f"data.corpus={source}", "data.sequence_length=16", "progress=false"]
        names = [
            "text7",
            "corpus",
            f"source={source!r}",
            str(folder.root),
            *(os.path.basename(name) for name in files),
        ]
        run_command(folder, arguments, names)


@amounts(few=5, many=60)
def test_the_command_line_says_what_is_wrong_with_a_corpus(amount):
    explore("corpora", check_training_text, amount, files=TREES, odd=ODD, source=st.sampled_from(SOURCES))


PAIR_ROWS = st.lists(
    st.one_of(
        st.fixed_dictionaries({"query": TEXT, "positive": st.one_of(TEXT, st.lists(TEXT, max_size=2), ANY)}),
        st.fixed_dictionaries({"query": TEXT, "document": TEXT, "label": st.sampled_from((0, 1, 2, None, "1", 0.5))}),
        st.fixed_dictionaries(
            {"query": TEXT, "positive": TEXT, "negatives": st.one_of(ANY, st.lists(TEXT, max_size=2))}
        ),
        st.dictionaries(st.sampled_from(("query", "positive", "document", "label", "x")), ANY, max_size=3),
    ),
    max_size=6,
)


def check_pairs(content, name, options):
    with case_folder() as folder:
        (folder / name).write_bytes(content)
        folder.remember()
        refused(lambda: load_pairs(name, **options), [name, *map(str, options)], (content, name, options))
        folder.assert_kept(also_nothing_new=True)


@amounts(few=10, many=120)
def test_pairs_are_refused_by_row_or_read(amount):
    content = st.one_of(PAIR_ROWS.map(as_json_lines), PAIR_ROWS.map(as_json_lines), TABLES)
    name = st.sampled_from(
        ("pairs7.jsonl", "pairs7.jsonl", "pairs7.json", "pairs7.csv", "pairs7.tsv", "pairs7.parquet", "pairs7.txt")
    )
    options = st.fixed_dictionaries(
        {}, optional={"held_out_fraction": st.sampled_from((0.5, 0, 2)), "max_pairs": st.sampled_from((1, 0))}
    )
    explore("pairs", check_pairs, amount, content=content, name=name, options=options)


BEIR = {
    "corpus.jsonl": b'{"_id": "d1", "title": "t", "text": "one"}\n{"_id": "d2", "text": "two"}\n{"_id": "d3", "text": "three"}\n',
    "queries.jsonl": b'{"_id": "q1", "text": "first"}\n{"_id": "q2", "text": "second"}\n',
    "qrels/train.tsv": b"query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t1\nq1\td3\t0\n",
    "qrels/test.tsv": b"query-id\tcorpus-id\tscore\nq1\td1\t1\n",
}


def check_beir(name, damage, split):
    with case_folder() as folder:
        for file, content in BEIR.items():
            path = folder / "beir7" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        damage(folder / "beir7" / name)
        folder.remember()
        read = (lambda: load_pairs("beir7")) if split is None else (lambda: read_beir("beir7", split))
        refused(read, ["beir7"], (name, damage, split))
        folder.assert_kept(also_nothing_new=True)


@amounts(few=10, many=100)
def test_a_beir_folder_is_refused_by_file_and_line_or_read(amount):
    split = st.sampled_from((None, "train", "test", "", "../x", "no"))
    records = st.tuples(st.sampled_from(("corpus.jsonl", "queries.jsonl")), json_damage("_id", "text", "title"))
    judgements = st.tuples(st.sampled_from(("qrels/train.tsv", "qrels/test.tsv")), BYTES)
    check = lambda file, split: check_beir(*file, split)  # noqa: E731
    explore("BEIR folders", check, amount, file=st.one_of(records, judgements), split=split)


def check_inputs(name, content, options):
    with case_folder() as folder:
        (folder / name).write_bytes(content)
        folder.remember()
        refused(lambda: read_inputs([name], **options), [name, *map(str, options)], (name, content, options))
        folder.assert_kept(also_nothing_new=True)


@amounts(few=10, many=120)
def test_texts_to_embed_are_refused_by_name_or_read(amount):
    name = st.sampled_from(
        ("in7.txt", "in7.jsonl", "in7.csv", "in7.tsv", "in7.parquet", "in7.jsonl.gz", "in7.txt.gz", "in7.pdf", "in7")
    )
    options = st.fixed_dictionaries(
        {}, optional={"text_column": st.sampled_from(("text", "id", "")), "id_column": st.sampled_from(("id", ""))}
    )
    explore("texts to embed", check_inputs, amount, name=name, content=st.one_of(TEXTS, TABLES), options=options)


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    """Root may read everything, so that the system's refusal is raised by hand."""
    (tmp_path / "secret.txt").write_text("words " * 500)
    true_open = open

    def refuse(path, *arguments, **options):
        if str(path).endswith("secret.txt"):
            raise PermissionError(13, "Permission denied", str(path))
        return true_open(path, *arguments, **options)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PermissionError, match=r"secret\.txt"):
        load_corpus(tmp_path / "secret.txt")
