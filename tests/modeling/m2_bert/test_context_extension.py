"""Longer rows: the prefix mode keeps every old output, all modes run at the new length and survive saving."""

import pytest
import torch
from torch.testing import assert_close

from hf_elm.modeling.m2_bert import M2BertForMaskedLM, M2BertModel, extend_context
from tests.modeling.m2_bert.tiny_m2_bert import tiny_model, tokens


@pytest.mark.parametrize("decay", ["computed", "stored"])
@torch.no_grad()
def test_prefix_keeps_short_rows_as_they_are(decay):
    model = tiny_model(dtype=torch.float64, filter_decay=decay)
    ids, short = tokens(2, 64), tokens(2, 13)
    expected = model(ids).last_hidden_state, model(short).last_hidden_state
    filter = model.encoder.layers[0].mixer.gated_filter
    taps = filter(64)[:]
    for length in (200, 333):  # twice in a row
        assert extend_context(model, length) is model
        for row, states in zip(
            (ids, short), expected, strict=True
        ):  # products depend on memory alignment in the last bit
            assert_close(model(row).last_hidden_state, states, atol=1e-13, rtol=0)
        longer = filter(length)[:]
        assert_close(longer[..., :64], taps, atol=1e-15, rtol=0)
        assert longer[..., 64:].abs().amax() < longer[..., :64].abs().amax()  # it goes on decaying
    assert model.config.max_position_embeddings == 333
    assert model.config.time_scale == 64
    assert model(tokens(1, 333)).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("mode", ["prefix", "stretch", "tile"])
@torch.no_grad()
def test_every_mode_runs_trains_and_reloads(tmp_path, mode):
    model = extend_context(tiny_model(M2BertForMaskedLM), 128, mode)
    ids = tokens(1, 128)
    with torch.enable_grad():
        model(ids, labels=ids).loss.backward()
    model.zero_grad()
    expected = model(ids).logits
    model.save_pretrained(tmp_path)
    assert_close(M2BertForMaskedLM.from_pretrained(tmp_path).eval()(ids).logits, expected, atol=0, rtol=0)
    positions = model.m2_bert.embeddings.position_embeddings.weight
    assert torch.equal(positions[:64], positions[64:])


@torch.no_grad()
def test_stretch_and_tile_follow_their_rules():
    def positions(model):
        return model.encoder.layers[0].mixer.gated_filter.positions

    fresh, longer = tiny_model(spread=0.0), tiny_model(spread=0.0, max_position_embeddings=128)
    # without anything learned, a stretched model has the features of one that was made at that length
    assert_close(positions(extend_context(fresh, 128, "stretch")), positions(longer), atol=1e-6, rtol=0)
    learned = tiny_model()
    before = positions(learned).clone()
    after = positions(extend_context(learned, 150, "tile"))
    assert torch.equal(after, before[torch.arange(150) % 64])
    assert learned.config.time_scale == 150


def test_wrong_arguments_are_named():
    model = tiny_model()
    with pytest.raises(ValueError, match="more than max_position_embeddings = 64, got 64"):
        extend_context(model, 64)
    with pytest.raises(ValueError, match="mode must be one of"):
        extend_context(model, 128, "interpolate")
    with pytest.raises(TypeError, match="needs an M2-BERT model, got Linear"):
        extend_context(torch.nn.Linear(2, 2), 128)
    assert isinstance(model, M2BertModel)
