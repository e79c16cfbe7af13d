"""The layer in evaluation, in blocks of channels and tiles of tokens, against the layer as it is written; filters in both forms."""

import pytest
import torch
from torch.testing import assert_close

from hf_elm.modeling.m2_bert import encoder_layer
from hf_elm.modeling.m2_bert.long_convolution import circular_filter, fft_length
from tests.modeling.m2_bert.tiny_m2_bert import tiny_model


def tiny_layer(**fields):
    model = tiny_model(dtype=torch.float64, num_hidden_layers=1, **fields)
    return model.encoder.layers[0], model.config


@pytest.mark.parametrize("cache_bytes", [0, 2**24])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(("batch", "seq", "masked"), [(1, 1, False), (1, 37, False), (3, 29, True)])
def test_blocks_and_tiles_equal_the_whole(monkeypatch, batch, seq, masked, residual, cache_bytes):
    layer, config = tiny_layer(residual_long_conv=residual, kernel_cache_bytes=cache_bytes)
    u = torch.randn(config.hidden_size, batch, seq, dtype=torch.float64)
    mask = None
    if masked:
        mask = (torch.arange(seq) < torch.tensor([seq, seq // 2, 3])[:batch, None]).long()
    whole = layer(u, mask).detach()  # with gradients: one projection, one tile
    for name, value in {"PROJECTED_ELEMENTS": 0, "PROJECTED_CHANNELS": 12, "TAP_CHANNELS": 8, "TOKEN_TILE": 7}.items():
        monkeypatch.setattr(encoder_layer, name, value)
    projected = []
    projections = type(layer.mixer)._projections
    monkeypatch.setattr(
        type(layer.mixer), "_projections", lambda *args: (projected.append(x[0]) or x for x in projections(*args))
    )
    with torch.no_grad():
        tiled = layer(u.clone(), mask)
    assert len(projected) == -(-config.hidden_size // 12)
    # sums in another order: float64 rounding alone
    assert_close(tiled, whole, atol=1e-10, rtol=1e-10)


def test_a_hook_on_a_part_still_sees_its_calls():
    layer, config = tiny_layer()
    seen = []
    layer.mlp.register_forward_hook(lambda module, arguments, output: seen.append(output.shape))
    with torch.no_grad():
        layer(torch.randn(config.hidden_size, 2, 9, dtype=torch.float64))
    assert seen == [(config.hidden_size, 2, 9)]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("length", [1, 2, 13, 32])
def test_the_circular_filter_is_that_of_the_taps_with_its_gradients(length, bidirectional):
    layer, _ = tiny_layer(bidirectional=bidirectional)
    filter = layer.mixer.gated_filter
    size, parameters = fft_length(length), [p for p in filter.parameters() if p.requires_grad]
    results = []
    for kernel in (
        circular_filter(filter(length)[:], size),
        filter(length).circular(slice(None), size),
    ):
        weights = torch.linspace(-1, 2, kernel.numel(), dtype=torch.float64).view_as(kernel)
        results.append((kernel, *torch.autograd.grad((kernel * weights).sum(), parameters, materialize_grads=True)))
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected, atol=1e-11, rtol=1e-11)
