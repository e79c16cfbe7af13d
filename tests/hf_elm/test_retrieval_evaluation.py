"""Rankings by hand and against scikit-learn, the BM25 row, tasks, BEIR folders and what is wrong with them."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

from hf_elm.ranking_metrics import METRICS, ranking_metrics, top_documents
from hf_elm.retrieval_evaluation import BM25, bm25_ranking, evaluate_retrieval
from hf_elm.retrieval_tasks import RetrievalTask, hidden_fact_task, load_task
from hf_elm.trainers.beir_folders import read_beir
from hf_elm.trainers.library_functions import described_functions
from hf_elm.trainers.pair_corpora import load_pairs
from hf_elm.trainers.retrieval_pairs import pairs_of_rows
from tests.trainers.tiny_retrieval import ROWS, tiny_embedder, tokenizer


DOCUMENTS = {"d1": ("", "the cat sat on the mat"), "d2": ("Dogs", "dogs bark"), "d3": ("", "read_file opens a file")}
QUERIES = {"q1": "cat", "q2": "which file is opened", "q3": "nobody judged this"}
QRELS = [("q1", "d1", 2), ("q1", "d2", 0), ("q2", "d3", 1)]


def write_beir(folder, documents=DOCUMENTS, queries=QUERIES, **splits):
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    rows = [{"_id": key, "title": title, "text": text} for key, (title, text) in documents.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"_id": key, "text": text} for key, text in queries.items()]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split, judged in (splits or {"test": QRELS}).items():
        lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in judged)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


# ----------------------------------------------------------------------------------------------------------- metrics


def test_metrics_by_hand():
    ranked = np.array([[4, 1, 0, 3], [2, 0, 1, 3], [1, 0, 2, 3]])
    values = ranking_metrics(ranked, [[1], [0, 3], [9]])
    assert values["ndcg@10"] == pytest.approx(
        [1 / math.log2(3), (1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3)), 0]
    )
    assert values["recall@10"].tolist() == [1, 1, 0]
    assert values["mrr"].tolist() == [0.5, 0.5, 0]


@pytest.mark.parametrize("documents", [3, 10, 11, 150])
def test_metrics_are_scikit_learns(documents):
    generator = np.random.default_rng(documents)
    scores = generator.normal(size=(7, documents))
    relevant = [
        sorted(generator.choice(documents, generator.integers(1, min(documents, 14)), replace=False)) for _ in range(7)
    ]
    truth = np.zeros_like(scores)
    for row, good in zip(truth, relevant, strict=True):
        row[good] = 1
    values = ranking_metrics(top_documents(scores), relevant)
    for i in range(7):
        assert values["ndcg@10"][i] == pytest.approx(ndcg_score(truth[i : i + 1], scores[i : i + 1], k=10))
    best = np.argsort(-scores, axis=1)
    for k in (10, 100):
        expected = [truth[i, best[i, :k]].sum() / len(relevant[i]) for i in range(7)]
        assert values[f"recall@{k}"] == pytest.approx(expected)


def test_of_equal_scores_the_first_document_wins():
    scores = np.array([[1.0, 3.0, 3.0, 3.0, 2.0]])
    assert top_documents(scores, 2).tolist() == [[1, 2]]
    assert top_documents(scores, 9).tolist() == [[1, 2, 3, 4, 0]]


# -------------------------------------------------------------------------------------------------------------- BM25


def test_bm25_follows_its_formula():
    """Lucene's BM25 written out for one word: idf * tf / (tf + k1 (1 - b + b |d| / mean |d|))."""
    documents = ["red fox", "red red hen house", "blue whale shark squid", "grey wolf"]
    task = RetrievalTask("toy", ["red", "whale fox", "zebra"], documents, [[0], [2], [3]])
    idf = math.log(1 + (4 - 2 + 0.5) / (2 + 0.5))
    weight = lambda tf, words: idf * tf / (tf + 1.5 * (0.25 + 0.75 * words / 3))  # noqa: E731
    assert weight(2, 4) > weight(1, 2)
    assert bm25_ranking(task).tolist() == [[1, 0, 2, 3], [0, 2, 1, 3], [0, 1, 2, 3]]


def test_bm25_splits_identifiers():
    task = RetrievalTask("toy", ["file of settings"], ["def f(): pass", "read_settings_file()"], [[1]])
    assert bm25_ranking(task)[0, 0] == 1


# -------------------------------------------------------------------------------------------------------- evaluation


def test_bm25_stands_beside_the_encoder_with_standard_errors(tmp_path):
    task = load_task(write_beir(tmp_path))
    assert (list(task.queries), task.relevant) == (["cat", "which file is opened"], [[0], [2]])
    assert task.documents[1] == "Dogs\ndogs bark"
    result = evaluate_retrieval(tiny_embedder(), tokenizer(), task)
    encoder, bm25 = result.scores
    assert (bm25.retriever, bm25.num_queries, bm25.num_documents) == (BM25, 2, 3)
    assert bm25.means == dict.fromkeys(METRICS, 1.0)
    assert bm25.standard_errors["mrr"] == 0
    text = str(result)
    assert BM25 in text
    assert "100.0 ± 0.0" in text
    result.to_json(tmp_path / "scores.json")
    saved = json.loads((tmp_path / "scores.json").read_text())
    assert saved["scores"][0]["means"] == encoder.means


def test_encoder_ranks_by_cosine_and_says_what_it_cut():
    model, encode = tiny_embedder(), tokenizer()
    pairs = pairs_of_rows(ROWS)
    task = RetrievalTask("toy", pairs.queries, [*pairs.documents, "y" * 99], pairs.positives)
    score = evaluate_retrieval(model, encode, task).scores[0]
    assert score.num_cut_documents == 1

    def embed(text):
        ids = torch.tensor([encode(text)["input_ids"][:64]])
        with torch.no_grad():
            return model.eval()(ids).sentence_embedding[0].numpy()

    scores = np.array([[embed(query) @ embed(text) for text in task.documents] for query in task.queries])
    expected = ranking_metrics(top_documents(scores), task.relevant)
    for name in METRICS:
        assert score.means[name] == pytest.approx(expected[name].mean())
        assert score.standard_errors[name] == pytest.approx(expected[name].std(ddof=1) / math.sqrt(len(ROWS)))


# ------------------------------------------------------------------------------------------------------------- tasks


@pytest.mark.parametrize("kind", ["needle", "passkey"])
@pytest.mark.parametrize(("length", "depth"), [(160, 0.0), (301, 0.5), (302, 1.0)])
def test_hidden_facts_are_where_they_should_be(kind, length, depth):
    encode = tokenizer()
    task = hidden_fact_task(kind, encode, length, depth, documents=7, seed=3)
    assert len(set(task.queries)) == len(set(task.documents)) == 7
    for index, (query, document) in enumerate(zip(task.queries, task.documents, strict=True)):
        assert length - 8 <= len(encode(document)["input_ids"]) <= length
        assert task.relevant[index] == [index]
        fact = next(line for line in document.splitlines() if "pass key" in line or "is kept in" in line)
        words = {*query.rstrip("?").split()} - {"Where", "What", "is", "the", "kept"}
        assert words <= {*fact.split()}
        before, after = document.split(fact)
        assert len(before) / len(before + after) == pytest.approx(depth, abs=0.1)
    assert task == hidden_fact_task(kind, encode, length, depth, documents=7, seed=3)
    assert task != hidden_fact_task(kind, encode, length, depth, documents=7, seed=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "haystack"}, "task must be one of"),
        ({"depth": 1.5}, r"depths must lie in \[0, 1\]"),
        ({"documents": 1}, "documents must be from 2 to"),
        ({"length": 20}, "lengths=20 tokens are too few"),
    ],
)
def test_impossible_hidden_facts_are_refused(options, message):
    arguments = {"kind": "needle", "length": 200, "depth": 0.5, "documents": 3} | options
    with pytest.raises(ValueError, match=message):
        hidden_fact_task(tokenizer=tokenizer(), **arguments)


# ------------------------------------------------------------------------------------------------------------- pairs


def test_library_functions_are_split_by_file_and_hide_their_docstring():
    corpus = load_pairs("stdlib", negatives_per_query=3)
    files = [{name.split(":")[0] for name in part.document_ids} for part in (corpus.train, corpus.held_out)]
    assert not files[0] & files[1]
    assert len(corpus.train) > 5 * len(corpus.held_out) > 500
    assert not {*corpus.train.queries} & {*corpus.held_out.queries}
    row = corpus.train[7]
    assert row == load_pairs("stdlib", negatives_per_query=3).train[7]
    assert len({*row["negatives"]} - {*row["positives"]}) == 3
    found = next(each for each in described_functions() if each.name == "textwrap.py:dedent")
    assert found.description.startswith("Remove any common leading whitespace")
    assert found.code.startswith("def dedent(text):\n")
    assert found.description[:30] not in found.code
    compile(found.code, "dedent", "exec")


def test_pairs_from_files(tmp_path):
    table = tmp_path / "pairs.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    corpus = load_pairs(table, held_out_fraction=0.3, negatives_per_query=2, max_pairs=4)
    assert len(corpus.train) == 4
    assert {row["query"] for row in ROWS} >= {*corpus.train.queries, *corpus.held_out.queries}
    assert not {*corpus.train.queries} & {*corpus.held_out.queries}
    path = tmp_path / "pairs.csv"
    path.write_text('query,positive,negatives\nwhere,here,"[""there"", ""nowhere""]"\nwhen,now,\n')
    corpus = load_pairs(path, held_out_fraction=0.5, negatives_per_query=9)
    rows = {
        row["query"]: row
        for part in (corpus.train, corpus.held_out)
        for row in map(part.__getitem__, range(len(part)))
    }
    assert rows["where"]["positives"] == ["here"]
    assert {"there", "nowhere"} <= {*rows["where"]["negatives"]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"query": "a"}], "row 0 has no positive"),
        ([{"query": "a", "positive": "b"}, {"query": " ", "positive": "b"}], "row 1: query must be text"),
        ([{"query": "a", "positive": "b", "negatives": ["b"]}], "'b' is a positive and a negative of the query 'a'"),
        ([{"query": "a", "document": "b", "label": 0.5}], "label must be 1"),
        ([{"query": "a", "positive": 3}], "row 0: positive must be text"),
        ([], "has no rows"),
    ],
)
def test_rows_that_make_no_pair_are_named(rows, message):
    with pytest.raises(ValueError, match=message):
        pairs_of_rows(rows)


def test_beir_training_folder(tmp_path):
    """Held out: another split where there is one, else some of the training queries."""
    folder = write_beir(tmp_path, train=QRELS, dev=QRELS[:1])
    corpus = load_pairs(folder, negatives_per_query=2)
    assert (corpus.train.query_ids, corpus.held_out.query_ids) == (["q1", "q2"], ["q1"])
    assert corpus.train[0]["negatives"][0] == "Dogs\ndogs bark"  # judged irrelevant: first
    (folder / "qrels" / "dev.tsv").unlink()
    corpus = load_pairs(folder)
    assert sorted([*corpus.train.query_ids, *corpus.held_out.query_ids]) == ["q1", "q2"]
    assert len(corpus.held_out.documents) == 3


def _no_corpus(folder):
    (folder / "corpus.jsonl").unlink()


def _no_split(folder):
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "dev.tsv")


def _append(name, text):
    def change(folder):
        with (folder / name).open("a") as file:
            file.write(text + "\n")

    return change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_no_corpus, FileNotFoundError, "has no corpus.jsonl"),
        (_no_split, FileNotFoundError, r"no qrels/test.tsv; its splits are: dev"),
        (_append("qrels/test.tsv", "q9\td1\t1"), ValueError, r"test.tsv, line 5: id 'q9' is not in queries.jsonl"),
        (_append("qrels/test.tsv", "q1\td9\t1"), ValueError, "line 5: id 'd9' is not in corpus.jsonl"),
        (_append("qrels/test.tsv", "q1\td1\t1"), ValueError, "line 5: query 'q1' and document 'd1' are judged twice"),
        (_append("qrels/test.tsv", "q1 d1 1"), ValueError, "line 5 must be query-id, corpus-id, score"),
        (
            _append("corpus.jsonl", '{"_id": "d1", "text": "again"}'),
            ValueError,
            "corpus.jsonl, line 4: id 'd1' is there twice",
        ),
        (_append("queries.jsonl", '{"_id": "q7"}'), ValueError, "queries.jsonl, line 4 is no record"),
        (_append("queries.jsonl", "not json"), ValueError, "queries.jsonl, line 4 is no record"),
    ],
)
def test_broken_beir_folders_are_refused_by_file_and_line(tmp_path, change, error, message):
    change(write_beir(tmp_path))
    with pytest.raises(error, match=message):
        read_beir(tmp_path, "test")
