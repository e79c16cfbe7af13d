"""Padding: invariance in "mask" mode, the published output in "reference" mode however the tokenizer padded."""

import pytest
import torch
from torch.testing import assert_close

from hf_elm.modeling.m2_bert import M2BertForMaskedLM, M2BertModel
from tests.modeling.m2_bert.tiny_m2_bert import oracle_mixer, padded, recorded, recorded_model, tiny_model, tokens


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@torch.no_grad()
def test_mask_mode_does_not_depend_on_padding(pooling, bidirectional):
    """16 tokens alone = padded to 32, 128 and 512 on either side, to 1e-6 of states of norm about 5; columns that are padding in
    every row are left out, so that a single row is the same bit for bit."""
    model = tiny_model(max_position_embeddings=512, pooling=pooling, bidirectional=bidirectional, spread=0.0)
    row, other = tokens(16), tokens(512, seed=1)
    alone = model(row[None])
    for length in (32, 128, 512):
        for side in ("right", "left"):
            ids, mask = padded(row, length, side)
            out = model(ids, mask)
            assert torch.equal(out.last_hidden_state[mask.bool()], alone.last_hidden_state[0])
            assert torch.equal(out.pooler_output, alone.pooler_output) or pooling == "mean"
            assert_close(out.pooler_output, alone.pooler_output, atol=1e-6, rtol=0)
            beside = model(torch.cat([ids, other[None, :length]]), torch.cat([mask, torch.ones_like(mask)]))
            assert_close(beside.last_hidden_state[:1][mask.bool()], alone.last_hidden_state[0], atol=1e-6, rtol=0)
            assert_close(beside.pooler_output[0], alone.pooler_output[0], atol=1e-6, rtol=0)


@torch.no_grad()
def test_mask_mode_does_not_depend_on_the_batch():
    model = tiny_model(dtype=torch.float64)
    rows = [tokens(n, seed=n) for n in (3, 40, 17)]
    batch = [padded(row, 40, side) for row, side in zip(rows, ("left", "right", "right"), strict=True)]
    out = model(torch.cat([ids for ids, _ in batch]), torch.cat([mask for _, mask in batch]))
    for i, row in enumerate(rows):
        alone = model(row[None])
        states = out.last_hidden_state[i][batch[i][1][0].bool()]
        assert_close(states, alone.last_hidden_state[0], atol=1e-12, rtol=1e-12)


def test_mask_mode_gradients_do_not_depend_on_padding():
    row, gradients = tokens(12), []
    for length in (12, 30):
        model = tiny_model(M2BertForMaskedLM, dtype=torch.float64)
        ids, mask = padded(row, length)
        model(ids, mask, labels=torch.where(mask.bool(), ids, -100)).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, atol=1e-11, rtol=1e-9)


@torch.no_grad()
def test_without_the_mask_padding_matters():
    """The invariance above is the mask's doing: pads that are read as tokens change everything."""
    model = tiny_model()
    row = tokens(16)
    ids, mask = padded(row, 32)
    assert (model(ids).last_hidden_state[0, :16] - model(ids, mask).last_hidden_state[0, :16]).abs().max() > 1e-2


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@torch.no_grad()
def test_reference_mode_gives_the_published_output_however_it_is_padded(pooling):
    """Published: right-padded to max_position_embeddings, pads read as tokens of type 0."""
    published = tiny_model(padding_mode="reference", pad_to_length=0, pooling=pooling)
    model = tiny_model(padding_mode="reference", pooling=pooling)
    row = tokens(16)
    types = torch.ones_like(row)
    ids, mask = padded(row, 64)
    padded_types, _ = padded(types, 64)
    expected = published(ids, mask, padded_types)
    for length, side in [(16, "right"), (20, "left"), (33, "right"), (64, "left"), (100, "right"), (100, "left")]:
        ids, mask = padded(row, length, side)
        out = model(ids, mask, padded(types, length, side)[0])
        assert out.last_hidden_state.shape == (1, length, 32)
        states = out.last_hidden_state[mask.bool()]
        assert_close(states, expected.last_hidden_state[0, :16], atol=1e-6, rtol=1e-6)
        assert_close(out.pooler_output, expected.pooler_output, atol=1e-6, rtol=1e-6)
    out = model(row[None], token_type_ids=types[None])  # no mask at all
    assert_close(out.last_hidden_state, expected.last_hidden_state[:, :16], atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_reference_mode_reproduces_a_recorded_row_without_its_padding():
    """Recorded with padding to the full length and token type 1 on the pads, so types are given for all of the row."""
    _, _, io = recorded("tiny_resid_128")
    model = recorded_model("tiny_resid_128", M2BertModel, pad_to_length=None)
    with_pads = model(io["input_ids"][1:], token_type_ids=io["token_type_ids"][1:])
    assert_close(with_pads.last_hidden_state[0], io["last_hidden_state"][1], atol=2e-3, rtol=0)
    used = int(io["attention_mask"][1].sum())
    cut = model(io["input_ids"][1:, :used])
    full = model(io["input_ids"][1:], io["attention_mask"][1:])
    assert_close(cut.last_hidden_state, full.last_hidden_state[:, :used], atol=1e-5, rtol=0)


@torch.no_grad()
def test_reference_mode_with_embeddings_in_place_of_ids():
    model = tiny_model(padding_mode="reference")
    ids, mask = padded(tokens(9), 20, "left")
    out = model(ids, mask)
    again = model(inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask)
    assert torch.equal(out.last_hidden_state, again.last_hidden_state)


@torch.no_grad()
def test_masked_mixer_against_the_oracle():
    model = tiny_model(dtype=torch.float64, mixer_pre_norm=True)
    mixer = model.encoder.layers[0].mixer
    u = torch.randn(2, 21, 32, dtype=torch.float64)
    mask = torch.ones(2, 21, dtype=torch.bool)
    mask[1, :6] = False
    mask[0, 15:] = False
    found = mixer(u.permute(2, 0, 1).contiguous(), mask).permute(1, 2, 0)
    assert_close(found, oracle_mixer(mixer, u, mask), atol=1e-12, rtol=1e-12)


def test_a_row_of_padding_only_is_refused():
    model = tiny_model()
    mask = torch.ones(3, 8, dtype=torch.long)
    mask[1] = 0
    with pytest.raises(ValueError, match="whole of row 1"):
        model(tokens(3, 8), mask)
