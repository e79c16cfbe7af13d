"""Rows of an encoder: every token of every document once, one document per row, framed; lengths that can be drawn."""

from types import SimpleNamespace

import datasets
import pytest

from hf_elm.trainers.encoder_rows import encoder_rows
from hf_elm.trainers.tokenization import build_tokenizer
from tests.trainers.tiny_masked_lm import byte_tokenizer


TEXTS = ["", "a", "to be or not to be " * 9, "[MASK] is text [SEP]", "x" * 30, "y" * 31, "z" * 200, "ü" * 7]
ARGUMENTS = SimpleNamespace(max_length=32, seed=0, text_column="text")


def rows_of(share=0.0, streamed=False, args=ARGUMENTS, texts=TEXTS):
    dataset = datasets.Dataset.from_dict({"text": texts, "source": ["s"] * len(texts)})
    dataset = dataset.to_iterable_dataset() if streamed else dataset
    rows = encoder_rows(dataset, byte_tokenizer(), args, variable_length_share=share)
    return [row["input_ids"] for row in rows]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_every_token_is_in_one_row_of_its_document(share):
    rows = rows_of(share)
    assert all(row[0] == 257 and row[-1] == 258 and 3 <= len(row) <= 32 for row in rows)
    assert bytes(token for row in rows for token in row[1:-1]) == "".join(TEXTS).encode()
    inside = {frozenset(row[1:-1]) for row in rows}
    assert not any({ord("x"), ord("y")} <= set(row) or {ord("y"), ord("z")} <= set(row) for row in inside)
    assert rows_of(share, streamed=True) == rows
    assert rows_of(share) == rows
    if share == 0:
        assert [len(row) for row in rows if ord("z") in row] == [32] * 6 + [22]


def test_lengths_are_drawn_for_the_share_asked_for():
    rows = rows_of(0.5, args=SimpleNamespace(max_length=64, seed=1, text_column="text"), texts=["q" * 62 * 500])
    full = sum(len(row) == 64 for row in rows)
    assert abs(full / len(rows) - (0.5 + 0.5 / 61)) < 4.5 * (0.25 / len(rows)) ** 0.5
    drawn = [len(row) for row in rows[:-1] if len(row) < 64]
    assert min(drawn) >= 4
    assert abs(sum(drawn) / len(drawn) - 33.5) < 4.5 * (60 / 12**0.5) / len(drawn) ** 0.5
    other = rows_of(0.5, args=SimpleNamespace(max_length=64, seed=2, text_column="text"), texts=["q" * 62 * 500])
    assert [*map(len, other)] != [*map(len, rows)]


def test_wrong_tokenizers_and_documents_are_refused():
    texts = datasets.Dataset.from_dict({"text": ["a"]})
    with pytest.raises(ValueError, match="no cls_token, sep_token, mask_token"):
        encoder_rows(texts, build_tokenizer("byte"), ARGUMENTS)
    with pytest.raises(TypeError, match="column 'text' must hold strings, got NoneType"):
        list(encoder_rows(datasets.Dataset.from_dict({"text": ["a", None]}), byte_tokenizer(), ARGUMENTS))
