"""Scores of documents and tokens: against `evaluate_elm`, the models themselves, and each other; windows; unknown text."""

import math

import pytest
import torch

from hf_elm.continuation_scores import scorer_of
from hf_elm.document_scores import DocumentScorer, parts, score_documents, windows
from hf_elm.evaluation import evaluate_elm
from hf_elm.scored_tables import as_kind, kind_of, read_table, write_table
from hf_elm.scoring import make_scorer, score_columns, score_texts
from hf_elm.trainers.tokenization import build_tokenizer
from tests.hf_elm import tiny_harness as tiny


LETTERS = tiny.letters()
TEXTS = ["Ships go up high.", "try, thirty, ninth", "x", "", "fog or snow on hills, or mist, slow on through it", "To"]
SCORED = [text for text in TEXTS if len(text) > 1]
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def monarc():
    return tiny.monarc(LETTERS)


@pytest.fixture(scope="module")
def exact(monarc):
    return score_texts(monarc, LETTERS, TEXTS, tokens=True, **QUIET)


def summed(rows, name):
    return sum(value for row in rows for value in row[name] if value is not None)


def test_sums_over_tokens_are_the_totals_of_evaluate(monarc, exact):
    rows = [{"input_ids": LETTERS(text)["input_ids"]} for text in SCORED]
    expected = evaluate_elm(monarc, rows, method="exact", tokenizer=LETTERS, **QUIET)
    tokens = sum(row["num_tokens"] for row in exact)
    assert tokens == expected.num_tokens
    assert sum(row["num_bytes"] for row in exact) == expected.num_bytes
    assert sum(row["num_unknown_tokens"] for row in exact) == expected.num_unknown_tokens
    for name, sums in (("lm_nll", "token_lm_log_probs"), ("elm_nll", "token_elm_log_probs")):
        assert -summed(exact, sums) == pytest.approx(getattr(expected, name) * tokens, abs=1e-9)
    assert summed(exact, "token_energies") == pytest.approx(expected.mean_energy * tokens, abs=1e-9)
    bits = -sum(row["elm_log_prob"] or 0 for row in exact) / math.log(2) / expected.num_bytes
    assert bits == pytest.approx(expected.elm_bits_per_byte, abs=1e-9)


def test_a_row_agrees_with_its_tokens(exact):
    for row, text in zip(exact, TEXTS, strict=True):
        lists = [name for name in row if name.startswith("token_")]
        assert {len(row[name]) for name in lists} == {len(LETTERS(text)["input_ids"])}
        if len(text) < 2:
            assert row["num_tokens"] == row["num_bytes"] == 0
            assert row["elm_log_prob"] is row["lm_bits_per_byte"] is row["energy"] is None
            continue
        assert "".join(row["token_texts"]) == text
        assert row["token_energies"][0] is row["token_elm_log_probs"][0] is None
        assert row["elm_log_prob"] == pytest.approx(summed([row], "token_elm_log_probs"), abs=1e-12)
        assert row["energy"] == pytest.approx(row["energy_per_token"] * row["num_tokens"], abs=1e-12)
        assert row["lm_nats_per_token"] == pytest.approx(-row["lm_log_prob"] / (len(text) - 1), abs=1e-12)
        assert row["lm_bits_per_byte"] == pytest.approx(-row["lm_log_prob"] / math.log(2) / (len(text) - 1), abs=1e-12)


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 3, "max_rows": 5}])
def test_scores_do_not_depend_on_batches(monarc, exact, options):
    again = score_texts(monarc, LETTERS, TEXTS, tokens=True, **options, **QUIET)
    for row, other in zip(exact, again, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            if isinstance(value, float):
                assert other[name] == pytest.approx(value, abs=1e-10), name


def test_an_interval_has_its_ends_in_order_and_the_exact_value_within_on_average(monarc, exact):
    options = {"method": "sampled", "exact_top": 8, "num_samples": 16}
    rows = score_texts(monarc, LETTERS, SCORED * 4, tokens=True, **options, **QUIET)
    for row in rows:
        for quantity in ("log_prob", "nats_per_token", "bits_per_byte"):
            ends = [row[f"elm_{quantity}{end}"] for end in ("_lower", "", "_upper")]
            assert ends == sorted(ends)
        assert row["elm_nats_per_token_lower"] == pytest.approx(-row["elm_log_prob_upper"] / row["num_tokens"])
        assert row["elm_log_prob_upper"] == pytest.approx(summed([row], "token_elm_log_probs_upper"))
        lm = next(each for each in exact if each["token_ids"] == row["token_ids"])
        assert row["lm_log_prob"] == pytest.approx(lm["lm_log_prob"], abs=1e-9)
        assert row["energy"] == pytest.approx(lm["energy"], abs=1e-9)


def test_without_log_z_the_language_model_and_the_energies_are_the_same(monarc, exact):
    rows = score_texts(monarc, LETTERS, TEXTS, method="none", tokens=True, **QUIET)
    assert list(rows[0]) == list(score_columns(make_scorer(monarc, method="none"), tokens=True))
    assert not [name for name in rows[0] if "elm" in name]
    for row, other in zip(rows, exact, strict=True):
        for name in ("lm_log_prob", "energy"):
            assert row[name] == (None if other[name] is None else pytest.approx(other[name], abs=1e-9))


def test_thinking_is_scored_before_and_after():
    model, text = tiny.nano_ebm(LETTERS), TEXTS[0]
    (row,) = score_texts(model, LETTERS, [text], think_steps=3, **QUIET)
    ids = torch.tensor([LETTERS(text)["input_ids"]])
    with torch.no_grad():
        out = model(ids, use_thinking=True, think_steps=3)
    for name, logits in (("s1", out.s1_logits), ("s2", out.logits)):
        expected = logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).sum().item()
        assert row[f"{name}_log_prob"] == pytest.approx(expected, abs=1e-9)
    assert row["s1_log_prob"] != row["s2_log_prob"]
    assert "energy" not in row


@pytest.mark.parametrize("window", [7, 8])
def test_a_plain_model_sees_windows_that_overlap_by_half(window):
    model, text = tiny.gpt2(LETTERS).double(), TEXTS[4]
    (row,) = score_texts(model, LETTERS, [text], window=window, tokens=True, **QUIET)
    ids, expected = LETTERS(text)["input_ids"], []
    for context, scored in windows(ids, window):
        with torch.no_grad():
            log_probs = model(torch.tensor([context + scored])).logits[0].log_softmax(-1)
        expected += [log_probs[len(context) - 1 + i, token].item() for i, token in enumerate(scored)]
    assert row["token_lm_log_probs"][0] is None
    assert row["token_lm_log_probs"][1:] == pytest.approx(expected, abs=1e-10)
    assert row["lm_log_prob"] == pytest.approx(sum(expected), abs=1e-10)


def test_unknown_text_is_left_out_and_counted(monarc):
    (row,) = score_texts(monarc, LETTERS, ["form é tint"], tokens=True, **QUIET)
    place = LETTERS("form é tint")["input_ids"].index(LETTERS.unk_token_id)
    assert row["num_unknown_tokens"] == 1
    assert row["num_tokens"] == row["num_bytes"] == 9
    assert row["token_lm_log_probs"][place] is row["token_energies"][place] is None
    assert row["elm_log_prob"] == pytest.approx(summed([row], "token_elm_log_probs"), abs=1e-12)


def test_bytes_are_those_of_the_text():
    tokenizer = build_tokenizer("byte")
    model = tiny.gpt2(tokenizer)
    (row,) = score_texts(model, tokenizer, ["a é 日本"], **QUIET)
    assert row["num_bytes"] == len("a é 日本".encode()) - 1
    assert row["num_tokens"] == row["num_bytes"]


def test_totals_are_those_of_the_documents(monarc):
    scorer = scorer_of(monarc)
    totals = score_documents(scorer, LETTERS, SCORED, window=9, progress=False)
    documents = DocumentScorer(scorer, LETTERS, 9)
    found = documents.scores([documents.token_ids(text) for text in SCORED])
    assert totals.counts.tolist() == [score.num_tokens for score in found]
    for name, nll in totals.nll.items():
        assert nll.tolist() == pytest.approx([-score.log_prob(name) for score in found], abs=1e-9)
    with pytest.raises(ValueError, match="fewer than two tokens"):
        score_documents(scorer, LETTERS, ["a"], progress=False)


def test_advance_is_told_of_every_token(monarc):
    documents = DocumentScorer(scorer_of(monarc), LETTERS, 9)
    ids, seen = [documents.token_ids(text) for text in TEXTS], [0] * len(TEXTS)

    def advance(number, count):
        seen[number] += count

    documents.scores(ids, advance)
    assert seen == [max(0, len(each) - 1) for each in ids]


@pytest.mark.parametrize("lengths", [[1], [5, 1, 9, 0, 2, 2, 2, 7], [0, 0, 0]])
def test_parts_go_on_from_their_ends(lengths):
    whole = list(parts(lengths, 6))
    assert [i for part in whole for i in range(part.start, part.stop)] == list(range(len(lengths)))
    for k, part in enumerate(whole):
        assert list(parts(lengths, 6, part.stop)) == whole[k + 1 :]


def test_tables_come_back_as_they_were(tmp_path):
    pytest.importorskip("pyarrow")
    rows = [
        {"id": i, "name": None if i % 7 == 0 else f"é{i}", "x": i / 3 if i % 5 else None, "list": [None, 0.1 * i]}
        for i in range(2500)
    ]
    kinds = {"id": "int", "name": "text", "x": "float", "list": "floats"}
    for suffix in ("jsonl", "parquet"):
        path = tmp_path / f"table.{suffix}"
        write_table(path, iter(rows), kinds)
        assert list(read_table(path)) == rows
        assert list(read_table(path, ["x", "other"])) == [{"x": row["x"]} for row in rows]
    write_table(tmp_path / "inf.jsonl", [{"x": math.inf}], {"x": "float"})
    assert list(read_table(tmp_path / "inf.jsonl")) == [{"x": None}]


def test_kinds_of_columns():
    assert [kind_of(values) for values in ([1, None], [1, 2.5], [None], [True], ["a", 1], [[1]])] == [
        "int",
        "float",
        "float",
        "bool",
        "text",
        "text",
    ]
    assert as_kind(["a", 1, None, [2]], "text") == ["a", "1", None, "[2]"]
