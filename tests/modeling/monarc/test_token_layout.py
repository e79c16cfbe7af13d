"""Who sees whom, who is counted, and which input is refused before any work."""

import pytest
import torch

from hf_elm.modeling.monarc.token_layout import check_inputs, token_layout


IDS = torch.arange(6).unsqueeze(0)
VOCAB = 10


def test_a_plain_row_needs_no_mask():
    layout = token_layout(IDS, torch.ones_like(IDS))
    assert layout.mask is None
    assert layout.prefix_mask is None
    assert layout.scored.tolist() == [[False, True, True, True, True, True]]
    assert layout.position_ids.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_left_padding_shifts_positions_and_counts_no_first_token():
    layout = token_layout(IDS, torch.tensor([[0, 0, 1, 1, 1, 1]]))
    assert layout.position_ids.tolist() == [[0, 0, 0, 1, 2, 3]]
    assert layout.scored.tolist() == [[False, False, False, True, True, True]]
    assert layout.prefix_mask[0, 0, 5].tolist() == [False, False, True, True, True, False]
    assert layout.mask[0, 0].diagonal().all()  # padding sees itself: no softmax over nothing


def test_documents_are_apart_and_their_first_tokens_are_a_choice():
    segments = torch.tensor([[0, 0, 0, 1, 1, -1]])
    layout = token_layout(IDS, segment_ids=segments)
    assert layout.prefix_mask[0, 0, 4].tolist() == [False, False, False, True, False, False]
    assert layout.scored.tolist() == [[False, True, True, False, True, False]]
    counted = token_layout(IDS, segment_ids=segments, mask_segment_starts=False)
    assert counted.scored.tolist() == [[False, True, True, True, True, False]]


def test_padding_in_either_mask_is_padding():
    segments, mask = torch.tensor([[0, 0, 0, 0, -1, -1]]), torch.tensor([[0, 1, 1, 1, 1, 1]])
    for given in (mask, mask.bool(), mask.float()):
        layout = token_layout(IDS, given, segment_ids=segments)
        assert layout.scored.tolist() == [[False, False, True, True, False, False]]
    everything = token_layout(IDS, torch.ones_like(IDS), segment_ids=segments)
    assert everything.scored.tolist() == [[False, True, True, True, False, False]]


@pytest.mark.parametrize("name", ["attention_mask", "segment_ids"])
def test_masks_of_another_shape_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name} must have the shape of input_ids \(1, 6\), got \(1, 1, 6, 6\)"):
        token_layout(IDS, **{name: torch.ones(1, 1, 6, 6)})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input_ids": None}, TypeError, "input_ids must be an integer tensor"),
        ({"input_ids": IDS.float()}, TypeError, "got torch.float32"),
        ({"input_ids": IDS[0]}, TypeError, r"\(batch, seq\)"),
        ({"input_ids": IDS + 5}, ValueError, r"input_ids must be in \[0, 10\), the vocabulary, got 5 to 10"),
        ({"input_ids": IDS - 1}, ValueError, "got -1 to 4"),
        ({"labels": IDS[:, 1:]}, ValueError, r"labels must have the shape of input_ids \(1, 6\), got \(1, 5\)"),
        ({"labels": IDS.roll(1)}, ValueError, "labels must equal input_ids, or be -100"),
        (
            {"negatives": IDS[:, None].int()},
            TypeError,
            r"negatives must be .* torch.int64, got torch.int32; convert with .long\(\)",
        ),
        ({"negatives": IDS[:, None].float()}, TypeError, "got torch.float32"),
        ({"negatives": IDS}, ValueError, r"\(batch, K, seq\) = \(1, K >= 1, 6\), got \(1, 6\)"),
        ({"negatives": IDS[:, None, 1:]}, ValueError, r"got \(1, 1, 5\)"),
        ({"negatives": IDS[:, None][:, :0]}, ValueError, r"got \(1, 0, 6\)"),
        ({"negatives": IDS[:, None] + 9}, ValueError, r"negatives must be in \[0, 10\)"),
    ],
)
def test_bad_input_is_refused_with_name_value_and_rule(change, error, message):
    inputs = {"input_ids": IDS, "labels": None, "negatives": None, **change}
    with pytest.raises(error, match=message):
        check_inputs(**inputs, vocab_size=VOCAB)


def test_good_input_passes():
    labels = IDS.masked_fill(IDS < 3, -100)
    check_inputs(IDS, labels, IDS[:, None].expand(-1, 3, -1), VOCAB)
    check_inputs(IDS.int(), None, None, VOCAB)
