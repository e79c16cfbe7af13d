"""Packing: no token is lost or moved, segments and labels agree, and neither batches nor interruptions change a row."""

import itertools
import json
import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_elm.trainers.packing import (
    PackingCollator,
    RowPacker,
    iter_packed_rows,
    pack_rows,
    row_segments,
)
from hf_elm.trainers.tokenization import build_tokenizer


STRATEGIES = ("wrapped", "greedy")
DOCUMENT_LENGTHS = st.lists(st.integers(0, 40), max_size=30)
PAD = 7


def numbered_documents(lengths):
    """Documents in which every token is different, and different from padding."""
    starts = [100, *itertools.accumulate(lengths, initial=100)][1:]
    return [list(range(start, start + length)) for start, length in zip(starts, lengths, strict=False)]


def packed(documents, packer):
    return [row for document in documents for row in packer.push(document)] + packer.flush()


def plain(rows):
    return [{name: np.asarray(values).tolist() for name, values in row.items()} for row in rows]


@contextmanager
def queue_of_three():
    """Greedy rows that are made before the end of the corpus: with the usual queue all documents of a test wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_elm.trainers.row_packer.QUEUE_SIZE", 3)
        yield


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer("byte")


@pytest.fixture(scope="module")
def corpus():
    return Dataset.from_dict({"text": [f"document {i} " * (1 + i % 7) for i in range(40)]})


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(lengths=DOCUMENT_LENGTHS, sequence_length=st.integers(2, 16))
@settings(max_examples=100, deadline=None)
def test_rows_hold_every_token_once_and_in_order(strategy, lengths, sequence_length):
    documents = numbered_documents(lengths)
    rows = packed(documents, RowPacker(sequence_length, pad_token_id=PAD, strategy=strategy))
    for number, document in enumerate(documents):
        assert [token for row in rows for token in row["input_ids"][row["document_ids"] == number]] == document
    assert sum((row["document_ids"] >= 0).sum() for row in rows) == sum(lengths)


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(lengths=DOCUMENT_LENGTHS, sequence_length=st.integers(2, 16))
@settings(max_examples=100, deadline=None)
def test_columns_of_a_row_agree(strategy, lengths, sequence_length):
    packer = RowPacker(sequence_length, pad_token_id=PAD, strategy=strategy, reset_position_ids=True)
    for row in packed(numbered_documents(lengths), packer):
        assert {len(values) for values in row.values()} == {sequence_length}
        expected = {name: [] for name in row}
        for number, segment in enumerate(row_segments(row)):
            documents = row["document_ids"][np.isin(row["input_ids"], segment)]
            assert len({*documents.tolist()}) == 1, "a segment belongs to one document"
            expected["input_ids"] += segment.tolist()
            expected["segment_ids"] += [number] * len(segment)
            expected["labels"] += [-100, *segment[1:].tolist()]
            expected["document_ids"] += documents.tolist()
            expected["position_ids"] += range(len(segment))
        padding = {"input_ids": PAD, "segment_ids": -1, "labels": -100, "document_ids": -1, "position_ids": 0}
        for name, values in row.items():
            room = sequence_length - len(expected[name])
            assert values.tolist() == expected[name] + [padding[name]] * room, name


@given(lengths=DOCUMENT_LENGTHS, sequence_length=st.integers(2, 16))
@settings(max_examples=50, deadline=None)
def test_wrapped_pads_the_last_row_only(lengths, sequence_length):
    rows = packed(numbered_documents(lengths), RowPacker(sequence_length))
    assert len(rows) == math.ceil(sum(lengths) / sequence_length)
    assert all((row["segment_ids"] >= 0).all() for row in rows[:-1])


@given(lengths=DOCUMENT_LENGTHS, sequence_length=st.integers(2, 16))
@settings(max_examples=50, deadline=None)
def test_greedy_cuts_only_documents_longer_than_a_row(lengths, sequence_length):
    rows = packed(numbered_documents(lengths), RowPacker(sequence_length, strategy="greedy"))
    for number, length in enumerate(lengths):
        pieces = sum(number in row["document_ids"] for row in rows)
        assert pieces == math.ceil(length / sequence_length)


def test_greedy_wastes_little():
    lengths = np.random.default_rng(0).lognormal(4, 1, 3000).astype(int) + 1
    rows = packed(numbered_documents(lengths), RowPacker(256, strategy="greedy"))
    assert np.mean([(row["segment_ids"] < 0).mean() for row in rows]) < 0.002


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(lengths=DOCUMENT_LENGTHS, cut=st.integers(0, 30))
@settings(max_examples=50, deadline=None)
@queue_of_three()
def test_packer_resumes_between_any_two_documents(strategy, lengths, cut):
    documents = numbered_documents(lengths)
    whole = packed(documents, RowPacker(8, strategy=strategy))
    first, second = RowPacker(8, strategy=strategy), RowPacker(8, strategy=strategy)
    rows = [row for document in documents[:cut] for row in first.push(document)]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert plain(rows + packed(documents[cut:], second)) == plain(whole)


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(lengths=DOCUMENT_LENGTHS)
@settings(max_examples=50, deadline=None)
def test_drop_last_drops_one_row_that_is_not_full(strategy, lengths):
    documents = numbered_documents(lengths)
    rows = packed(documents, RowPacker(8, strategy=strategy))
    kept = packed(documents, RowPacker(8, strategy=strategy, drop_last=True))
    dropped = bool(rows) and rows[-1]["segment_ids"][-1] < 0
    assert plain(kept) == plain(rows[:-1] if dropped else rows)


def test_packer_refuses_what_it_cannot_pack():
    with pytest.raises(ValueError, match="sequence_length must be at least 2"):
        RowPacker(1)
    with pytest.raises(ValueError, match=r"strategy must be one of \['wrapped', 'greedy'\], got 'best'"):
        RowPacker(8, strategy="best")
    for tokens in ([[1, 2]], [0.5], 3):
        with pytest.raises(ValueError, match="vector of integers"):
            RowPacker(8).push(tokens)
    with pytest.raises(ValueError, match="saved with sequence_length=8, this packer has 16"):
        RowPacker(16).load_state_dict(RowPacker(8).state_dict())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_dataset_and_stream_give_the_rows_of_the_packer(tokenizer, corpus, strategy):
    documents = [[*text.encode(), tokenizer.eos_token_id] for text in corpus["text"]]
    packer = RowPacker(32, pad_token_id=tokenizer.pad_token_id, strategy=strategy, reset_position_ids=True)
    expected = plain(packed(documents, packer))
    options = {"strategy": strategy, "reset_position_ids": True}
    assert plain(pack_rows(corpus, tokenizer, 32, seed=None, **options)) == expected
    assert plain(iter_packed_rows(corpus, tokenizer, 32, **options)) == expected
    tokenised = Dataset.from_dict({"input_ids": documents, "text": corpus["text"]})
    assert plain(pack_rows(tokenised, tokenizer, 32, seed=None, **options)) == expected


def test_seed_orders_documents_and_document_ids_name_them(tokenizer, corpus):
    rows = pack_rows(corpus, tokenizer, 32, seed=1)
    assert plain(rows) == plain(pack_rows(corpus, tokenizer, 32, seed=1))
    assert plain(rows) != plain(pack_rows(corpus, tokenizer, 32, seed=2))
    tokens = np.array(rows["input_ids"]).ravel()
    numbers = np.array(rows["document_ids"]).ravel()
    assert numbers[numbers >= 0].tolist() != sorted(numbers[numbers >= 0])
    for number, text in enumerate(corpus["text"]):
        assert tokenizer.decode(tokens[numbers == number]) == text + tokenizer.eos_token


def test_rows_do_not_depend_on_processes(tokenizer, corpus):
    assert plain(pack_rows(corpus, tokenizer, 32, num_proc=2)) == plain(pack_rows(corpus, tokenizer, 32))


def test_rows_of_a_dataset_on_disk_are_cached(tokenizer, tmp_path):
    corpus = Dataset.from_generator(
        lambda: iter([{"text": f"document {i}"} for i in range(9)]), cache_dir=str(tmp_path)
    )
    rows = pack_rows(corpus, tokenizer, 8)
    assert pack_rows(corpus, build_tokenizer("byte"), 8).cache_files == rows.cache_files != []
    for other in (pack_rows(corpus, tokenizer, 8, seed=1), pack_rows(corpus, tokenizer, 9)):
        assert other.cache_files != rows.cache_files


@pytest.mark.parametrize(("strategy", "buffer"), [("wrapped", 0), ("wrapped", 5), ("greedy", 0), ("greedy", 5)])
@queue_of_three()
def test_stream_resumes_with_the_next_row(tokenizer, corpus, strategy, buffer):
    def rows():
        stream = corpus.to_iterable_dataset(num_shards=3)
        return iter_packed_rows(stream, tokenizer, 32, strategy=strategy, shuffle_buffer_size=buffer)

    whole = plain(rows())
    for cut in (0, 1, 2, len(whole) // 2, len(whole) - 1, len(whole)):
        interrupted, resumed = rows(), rows()
        before = list(itertools.islice(interrupted, cut))
        state = json.loads(json.dumps(interrupted.state_dict()))
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert plain([*before, *resumed]) == whole, cut
        assert plain(resumed) == whole, "the next epoch starts at the beginning"


def test_shuffle_buffer_changes_the_order_with_seed_and_epoch(tokenizer, corpus):
    def order(rows):
        return list(dict.fromkeys(number for row in rows for number in row["document_ids"].tolist() if number >= 0))

    rows = iter_packed_rows(corpus, tokenizer, 32, shuffle_buffer_size=10, seed=1)
    first = order(rows)
    assert order(rows) == first != list(range(40)) == sorted(first)
    assert order(iter_packed_rows(corpus, tokenizer, 32, shuffle_buffer_size=10, seed=2)) != first
    rows.set_epoch(1)
    assert order(rows) != first


def test_stream_of_several_workers_holds_every_document(tokenizer, corpus):
    rows = iter_packed_rows(corpus.to_iterable_dataset(num_shards=4), tokenizer, 32)
    loader = torch.utils.data.DataLoader(rows, batch_size=4, num_workers=2, collate_fn=PackingCollator(PAD))
    held = sum((batch["segment_ids"] >= 0).sum().item() for batch in loader)
    assert held == sum(len(text) + 1 for text in corpus["text"])


def test_datasets_that_cannot_be_packed_are_refused(tokenizer, corpus):
    with pytest.raises(TypeError, match="iter_packed_rows"):
        pack_rows(corpus.to_iterable_dataset(), tokenizer, 32)
    with pytest.raises(TypeError, match=r"IterableDataset\.from_generator"):
        iter_packed_rows(iter(["text"]), tokenizer, 32)
    with pytest.raises(ValueError, match=r"text_column='texts' is not a column.*Did you mean 'text'"):
        pack_rows(corpus, tokenizer, 32, text_column="texts")
    with pytest.raises(ValueError, match="tokenizer is None"):
        pack_rows(corpus, None, 32)
    with pytest.raises(ValueError, match="packed already"):
        pack_rows(pack_rows(corpus, tokenizer, 32), tokenizer, 32)
    with pytest.raises(ValueError, match="fill no row of sequence_length=9999"):
        pack_rows(corpus, tokenizer, 9999, drop_last=True)
    with pytest.raises(ValueError, match="no rows"):
        pack_rows(corpus.select([]), tokenizer, 32)
    with pytest.raises(ValueError, match="shuffle_buffer_size must not be negative"):
        iter_packed_rows(corpus, tokenizer, 32, shuffle_buffer_size=-1)


def test_collator_keeps_full_rows_and_drops_the_mask(tokenizer, corpus):
    rows = pack_rows(corpus, tokenizer, 32, reset_position_ids=True, drop_last=True)
    batch = PackingCollator(PAD)([rows[0], rows[1]])
    assert {*batch} == {"input_ids", "segment_ids", "labels", "position_ids"}
    for name, values in batch.items():
        assert values.dtype == torch.int64
        assert values.tolist() == rows[:2][name]


def test_collator_pads_on_the_right():
    rows = [
        {"input_ids": [1, 2, 3], "segment_ids": [0, 0, 1], "negatives": [[4, 5, 6], [7, 8, 9]]},
        {"input_ids": [1], "segment_ids": [0], "negatives": [[4], [5]]},
    ]
    batch = PackingCollator(pad_token_id=PAD, pad_to_multiple_of=4)(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3, PAD], [1, PAD, PAD, PAD]]
    assert batch["segment_ids"].tolist() == [[0, 0, 1, -1], [0, -1, -1, -1]]
    assert batch["labels"].tolist() == [[-100, 2, -100, -100], [-100] * 4]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert batch["negatives"].tolist() == [
        [[4, 5, 6, PAD], [7, 8, 9, PAD]],
        [[4, PAD, PAD, PAD], [5, PAD, PAD, PAD]],
    ]


def test_collator_takes_unpacked_rows_with_their_mask():
    rows = [{"input_ids": [1, 2, PAD], "attention_mask": [1, 1, 0]}, {"input_ids": [3], "attention_mask": [1]}]
    batch = PackingCollator(PAD)(rows)
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, 2, -100], [3, -100, -100]]
    assert "attention_mask" not in PackingCollator(PAD)([{"input_ids": [1, 2]}, {"input_ids": [3, 4]}])


def test_collator_marks_the_padding_of_packed_rows(tokenizer, corpus):
    last = pack_rows(corpus, tokenizer, 32)[-1]
    batch = PackingCollator(PAD)([last])
    assert batch["attention_mask"].tolist() == [[int(segment >= 0) for segment in last["segment_ids"]]]


def test_collator_names_rows_that_disagree():
    with pytest.raises(ValueError, match=r"Row 1 of the batch .* rows must agree"):
        PackingCollator()([{"input_ids": [1], "labels": [1]}, {"input_ids": [1]}])
    with pytest.raises(ValueError, match="Row 0 of the batch has columns of different lengths"):
        PackingCollator()([{"input_ids": [1, 2], "labels": [1]}])


def test_segments_of_a_row_are_its_documents(tokenizer):
    texts = ["a first document", "a second", "c"]
    (row,) = iter_packed_rows(IterableDataset.from_generator(lambda: ({"text": t} for t in texts)), tokenizer, 64)
    assert [tokenizer.decode(segment[:-1]) for segment in row_segments(row)] == texts
