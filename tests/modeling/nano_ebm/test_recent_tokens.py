"""What the energy's units see of the last tokens: against a loop over tokens, with padding, documents and caches."""

import pytest
import torch
from torch.testing import assert_close

from hf_elm.modeling.nano_ebm.attention_layout import attention_layout
from hf_elm.modeling.nano_ebm.recent_tokens import normed_rows, recent_rows
from tests.modeling.nano_ebm.tiny_nano_ebm import tokens


SEQ, HIDDEN = 7, 3
LEFT_PADDED = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, -1], [0, 1, 1, 1, 1, 2, 2]])
LAYOUTS = {
    "plain": {},
    "left padding": {"attention_mask": LEFT_PADDED},
    "right padding": {"attention_mask": LEFT_PADDED.flip(1)},
    "documents": {"segment_ids": DOCUMENTS},
}


def documents_of(layout):
    """Document of each token, None for padding, by rows."""
    mask = layout.get("attention_mask", torch.ones(2, SEQ))
    segments = layout.get("segment_ids", torch.zeros(2, SEQ, dtype=torch.long))
    return [
        [int(d) if m and d >= 0 else None for m, d in zip(*row, strict=True)]
        for row in zip(mask, segments, strict=True)
    ]


def expected_rows(rows, count, documents):
    """Token t - i of the same document, unless it is the first one of it."""
    result = torch.zeros(2, SEQ, count, HIDDEN)
    for row, names in enumerate(documents):
        for t in range(SEQ):
            for i in range(min(count, t)):  # token 0 is the first of its document, or padding
                if (
                    names[t] is not None
                    and names[t] == names[t - i] == names[t - i - 1]
                    and None not in names[t - i : t]
                ):
                    result[row, t, i] = rows[row, t - i]
    return result.flatten(2)


@pytest.mark.parametrize("count", [1, 3, 10])
@pytest.mark.parametrize("name", LAYOUTS)
def test_each_position_sees_the_last_tokens_of_its_document(name, count):
    rows = torch.randn(2, SEQ, HIDDEN, generator=torch.Generator().manual_seed(0))
    documents = documents_of(LAYOUTS[name])
    found = recent_rows(rows, count, attention_layout(tokens(2, SEQ), **LAYOUTS[name]), slice(None))
    counted = torch.tensor([[document is not None for document in row] for row in documents])
    assert torch.equal(found[counted], expected_rows(rows, count, documents)[counted])
    assert found[counted].count_nonzero() > 0


@pytest.mark.parametrize("mask", [None, LEFT_PADDED])
@pytest.mark.parametrize("kept", [slice(-1, None), torch.tensor([0, 2])])
def test_a_cache_and_chosen_positions_change_nothing(kept, mask):
    rows = torch.randn(2, SEQ, HIDDEN, generator=torch.Generator().manual_seed(0))
    whole = recent_rows(rows, 3, attention_layout(tokens(2, SEQ), mask), slice(None))
    assert torch.equal(recent_rows(rows, 3, attention_layout(tokens(2, SEQ), mask), kept), whole[:, kept])
    last = attention_layout(tokens(2, 3), mask, past=SEQ - 3)
    assert torch.equal(recent_rows(rows, 3, last, kept), whole[:, -3:][:, kept])


def test_rows_are_scaled_to_a_mean_square_of_one():
    rows = 0.02 * torch.randn(4, 5, 64, dtype=torch.float64)
    assert_close(normed_rows(rows).square().mean(-1), torch.ones(4, 5).double(), atol=5e-3, rtol=0)  # 1e-6 beside 4e-4
    assert torch.equal(normed_rows(torch.zeros(1, 1, 4)), torch.zeros(1, 1, 4))
