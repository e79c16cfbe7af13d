"""Rows become batches with the right padding, documents and counted places."""

import pytest
import torch

from hf_elm.evaluation_rows import document_slices, row_batches


VOCAB = 12


def test_document_slices_follow_segments_and_padding():
    rows = [{"input_ids": [1, 2, 3, 4, 5], "segment_ids": [0, 0, 1, 2, -1]}, {"input_ids": [6], "segment_ids": [0]}]
    batch = next(row_batches(rows, 2, None, VOCAB))
    assert document_slices(batch) == [(0, 0, 2), (0, 2, 3), (0, 3, 4), (1, 0, 1)]


def test_rows_are_padded_and_padding_is_never_counted():
    rows = [{"input_ids": [1, 2, 3]}, {"input_ids": [4]}, {"input_ids": [5, 6]}]
    first, second = row_batches(iter(rows), 2, None, VOCAB)
    assert first.input_ids.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert first.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert first.counted.tolist() == [[True] * 3, [True, False, False]]
    assert second.attention_mask is None  # nothing to mask
    assert second.first_row == 2
    assert second.documents[..., 0].tolist() == [[2, 2]]
    assert set(second.model_inputs(torch.device("cpu"))) == {"input_ids"}


def test_packed_rows_of_unequal_length_get_padding_segments():
    rows = [{"input_ids": [1, 2, 3], "segment_ids": [0, 1, 1]}, {"input_ids": [4, 5], "segment_ids": [0, 0]}]
    batch = next(row_batches(rows, 2, None, VOCAB))
    assert batch.segment_ids.tolist() == [[0, 1, 1], [0, 0, -1]]
    assert batch.attention_mask is None
    assert batch.counted.sum() == 5


def test_document_ids_replace_rows_and_segments_as_keys():
    rows = [{"input_ids": [1, 2], "segment_ids": [0, 1], "document_ids": [40, 41]}]
    assert next(row_batches(rows, 1, None, VOCAB)).documents.tolist() == [[[-1, 40], [-1, 41]]]


@pytest.mark.parametrize("length", [3, 4])
def test_the_longest_row_is_the_number_of_positions(length):
    batches = row_batches([{"input_ids": [1] * length}], 1, 3, VOCAB)
    if length == 3:
        assert next(batches).input_ids.shape == (1, 3)
    else:
        with pytest.raises(ValueError, match="pack the data with sequence_length <= 3"):
            next(batches)
