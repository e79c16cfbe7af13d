"""``hf-elm select``: what it reads and writes, training from it, and its errors."""

import json
import math

import pytest

from hf_elm.command_line import main
from hf_elm.scored_tables import read_table, write_table
from hf_elm.selection import select
from hf_elm.selection_run import preferred, select_rows
from hf_elm.trainers.corpora import load_corpus
from tests.hf_elm.test_command_line import train_arguments


COUNT = 30


def rows(include_text=True):
    """Rows as hf-elm score writes them: 10 + i bytes each, of which 2 i + 4 were scored as i + 2 tokens; the last has no score."""
    made = []
    for i in range(COUNT):
        text = {"text": f"{i:02d} " + "w" * (7 + i)} if include_text else {}
        bits = None if i == COUNT - 1 else float((7 * i) % COUNT)
        counts = {"num_tokens": i + 2, "num_bytes": 2 * i + 4, "num_unknown_tokens": 0}
        made.append(
            {"id": i, **text, "domain": "abb"[i % 3], **counts, "elm_bits_per_byte": bits, "token_ids": [1, 2]}
        )
    return made


KINDS = {
    "id": "int",
    "text": "text",
    "domain": "text",
    "num_tokens": "int",
    "num_bytes": "int",
    "num_unknown_tokens": "int",
}
KINDS |= {"elm_bits_per_byte": "float", "token_ids": "ints"}


@pytest.fixture(params=["jsonl", "parquet"])
def scores(request, tmp_path):
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"scores.{request.param}"
    write_table(path, rows(), KINDS)
    return path


def fails(capsys, *arguments):
    capsys.readouterr()
    assert main(["select", *map(str, arguments)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    return errors[0]


def test_the_chosen_rows_are_those_of_the_draw(scores, tmp_path, capsys):
    output = tmp_path / f"chosen{scores.suffix}"
    assert main(["select", str(scores), f"output={output}", "count=8", "seed=2", "temperature=0.5"]) == 0
    expected = select(
        [None if row["elm_bits_per_byte"] is None else -row["elm_bits_per_byte"] for row in rows()],
        count=8,
        temperature=0.5,
        seed=2,
    )
    chosen = list(read_table(output))
    assert [row["id"] for row in chosen] == expected.indices.tolist()
    assert [row["selection_rank"] for row in chosen] == list(range(1, 9))
    assert [row["selection_probability"] for row in chosen] == expected.probabilities.tolist()
    assert [row["selection_inclusion_probability"] for row in chosen] == expected.inclusion_probabilities.tolist()
    whole = {row["id"]: row for row in rows()}
    for row in chosen:
        for name, value in whole[row["id"]].items():
            assert name == "token_ids" or row[name] == value
        assert "token_ids" not in row
    record, shown = json.loads((tmp_path / f"{output.name}.json").read_text()), capsys.readouterr().out
    assert record["num_documents"] == 30
    assert record["num_eligible"] == 29
    assert record["mean_of_chosen"] == pytest.approx(sum(row["elm_bits_per_byte"] for row in chosen) / 8)
    assert record["mean_of_chosen"] < record["mean_of_eligible"]
    for words in (
        "8 of 29 documents",
        "low elm_bits_per_byte preferred, temperature 0.5, seed 2",
        "1 without a score",
    ):
        assert words in shown
    again = tmp_path / f"again{scores.suffix}"
    assert main(["select", str(scores), f"output={again}", "count=8", "seed=2", "tau=0.5"]) == 0
    assert again.read_bytes() == output.read_bytes()


def test_lists_by_token_alone_are_left_out(tmp_path):
    made = [{"text": "one", "rating": 1.0, "token_kind": "word", "token_ids": [1, 2]}]
    kinds = {"text": "text", "rating": "float", "token_kind": "text", "token_ids": "ints"}
    write_table(tmp_path / "rated.jsonl", made, kinds)
    select_rows(tmp_path / "rated.jsonl", tmp_path / "chosen.jsonl", column="rating", count=1)
    (row,) = read_table(tmp_path / "chosen.jsonl")
    assert row["token_kind"] == "word"
    assert "token_ids" not in row


def test_the_sign_is_the_callers(scores, tmp_path):
    best = {}
    for prefer in ("low", "high"):
        output = tmp_path / f"{prefer}.jsonl"
        select_rows(scores, output, count=3, prefer=prefer, temperature=0)
        best[prefer] = [row["elm_bits_per_byte"] for row in read_table(output)]
    assert best == {"low": [0.0, 1.0, 2.0], "high": [29.0, 28.0, 27.0]}
    assert [
        preferred(name) for name in ("lm_bits_per_byte", "s2_nats_per_token", "energy", "elm_log_prob", "rating")
    ] == [
        "low",
        "low",
        "low",
        "high",
        "high",
    ]


def test_budgets_are_of_whole_texts(scores, tmp_path):
    sizes = [10 + i for i in range(COUNT)]
    by_bytes = select_rows(scores, tmp_path / "bytes.jsonl", max_bytes=200, temperature=math.inf, seed=1)
    taken = [row["id"] for row in read_table(tmp_path / "bytes.jsonl")]
    assert by_bytes["num_chosen_bytes"] == sum(sizes[i] for i in taken) <= 200
    by_tokens = select_rows(scores, tmp_path / "tokens.jsonl", max_tokens=100, temperature=math.inf, seed=1)
    taken = [row["id"] for row in read_table(tmp_path / "tokens.jsonl")]
    assert by_tokens["num_chosen_tokens"] == sum(math.ceil(sizes[i] / 2) for i in taken) <= 100  # two bytes per token


def test_strata_keep_their_shares(scores, tmp_path, capsys):
    output = tmp_path / "chosen.jsonl"
    assert main(["select", str(scores), f"output={output}", "fraction=0.4", "strata=domain", "temperature=.inf"]) == 0
    taken = [row["domain"] for row in read_table(output)]
    assert len(taken) == 12
    assert taken.count("a") == 4  # of 10 among 29
    strata = json.loads((tmp_path / "chosen.jsonl.json").read_text())["strata"]
    assert strata == {"a": {"eligible": 10, "chosen": 4}, "b": {"eligible": 19, "chosen": 8}}
    assert "2 strata of domain" in capsys.readouterr().out


def test_texts_are_joined_from_what_was_scored(tmp_path, capsys):
    without, kinds = rows(include_text=False), {name: kind for name, kind in KINDS.items() if name != "text"}
    write_table(tmp_path / "scores.jsonl", without, kinds)
    (tmp_path / "texts.txt").write_text("".join(row["text"] + "\n" for row in rows()), encoding="utf-8")
    output = tmp_path / "chosen.jsonl"
    assert "texts=" in fails(capsys, tmp_path / "scores.jsonl", f"output={output}", "count=4")
    joined = [f"texts={tmp_path / 'texts.txt'}", "max_bytes=100"]
    assert main(["select", str(tmp_path / "scores.jsonl"), f"output={output}", *joined]) == 0
    whole = {row["id"]: row["text"] for row in rows()}
    chosen = list(read_table(output))
    assert chosen
    assert all(row["text"] == whole[row["id"]] for row in chosen)
    (tmp_path / "few.txt").write_text("one\n", encoding="utf-8")
    other = f"output={tmp_path / 'other.jsonl'}"
    assert "is not in texts" in fails(
        capsys, tmp_path / "scores.jsonl", other, "count=4", f"texts={tmp_path / 'few.txt'}"
    )


def test_a_model_is_trained_on_what_was_chosen(tmp_path):
    documents = [{"text": f"def f{i}(x):\n    return {i} * x + {i % 3}\n" * 4, "rating": float(i)} for i in range(40)]
    write_table(tmp_path / "ratings.jsonl", documents, {"text": "text", "rating": "float"})
    chosen, out = tmp_path / "chosen.jsonl", tmp_path / "run"
    assert main(["select", str(tmp_path / "ratings.jsonl"), f"output={chosen}", "count=20", "column=rating"]) == 0
    corpus = load_corpus(str(chosen), held_out_fraction=0.05, seed=0)
    read = sorted([*corpus.train["text"], *corpus.held_out["text"]])
    assert read == sorted(row["text"] for row in read_table(chosen))
    assert set(read) < {row["text"] for row in documents}
    assert main(train_arguments(chosen, out)) == 0
    assert (out / "model.safetensors").is_file()
    assert json.loads((out / "likelihood.json").read_text())["num_tokens"] > 0


def test_wrong_input_is_one_clear_line(scores, tmp_path, capsys):
    output = f"output={tmp_path / 'out.jsonl'}"
    (tmp_path / "there.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"text": "a", "x": 1}\n[1]\n')
    (tmp_path / "words.jsonl").write_text('{"text": "a", "x": "good"}\n')
    (tmp_path / "plain.jsonl").write_text('{"text": "a", "x": 1.5}\n')
    cases = [
        ((output, "count=1"), "takes one table"),
        ((scores, "count=1"), "needs output="),
        ((scores, output), "one of count, fraction, max_tokens, max_bytes; got none"),
        ((scores, output, "count=2", "fraction=0.5"), "got count and fraction"),
        ((scores, output, "count=0"), "count must be positive"),
        ((scores, output, "fraction=1.5"), "fraction must lie strictly between 0 and 1"),
        ((scores, output, "count=1", "temperature=-1"), "temperature must be 0"),
        ((scores, output, "count=1", "prefer=best"), "prefer must be low or high"),
        ((scores, output, "count=1", "seed=-1"), "seed must be in"),
        ((scores, output, "count=1", "column=colour"), "column=colour is not in row 0"),
        ((scores, output, "count=1", "strata=colour"), "strata=colour is not in row 0"),
        ((scores, output, "max_bytes=5"), "more than the 5 asked for"),
        ((scores, output, "max_tokens=1"), "more than the 1 asked for"),
        ((scores, f"output={tmp_path / 'there.jsonl'}", "count=1"), "there.jsonl exists"),
        ((scores, f"output={tmp_path / 'out.csv'}", "count=1"), 'unknown suffix ".csv"'),
        ((tmp_path / "none.jsonl", output, "count=1"), "none.jsonl does not exist"),
        ((tmp_path / "none.txt", output, "count=1"), 'unknown suffix ".txt"'),
        ((tmp_path / "bad.jsonl", output, "count=1", "column=x"), "line 2 is not a JSON object"),
        ((tmp_path / "words.jsonl", output, "count=1", "column=x"), "must hold numbers"),
        ((tmp_path / "plain.jsonl", output, "max_tokens=9", "column=x"), "needs the columns num_tokens and num_bytes"),
    ]
    for arguments, message in cases:
        assert message in fails(capsys, *arguments), arguments
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".out", "out."))]
