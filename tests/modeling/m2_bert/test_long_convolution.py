"""The long convolution and the mixer's middle against their sums as written, gradients included."""

import pytest
import torch
from torch.testing import assert_close

from hf_elm.modeling.m2_bert import gated_convolution as gated_module
from hf_elm.modeling.m2_bert.gated_convolution import channel_chunks, evaluate_gated_convolution, gated_convolution
from hf_elm.modeling.m2_bert.long_convolution import fft_length, long_convolution, spectrum
from hf_elm.modeling.m2_bert.short_convolution import short_convolution, short_convolution_backward


EXACT = {"atol": 1e-12, "rtol": 1e-12}


def normal(*shape, seed=0, grad=True):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_(grad)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("seq", [1, 2, 127, 128, 251, 1024])
def test_fft_equals_the_direct_sum(seq, directions):
    x, taps = normal(3, 2, seq), normal(directions, 3, seq, seed=1)
    grad = normal(3, 2, seq, seed=2, grad=False)
    results = {}
    for backend in ("fft", "direct"):
        y = long_convolution(x, taps, backend)
        results[backend] = (y, *torch.autograd.grad(y, (x, taps), grad))
    for found, expected in zip(results["fft"], results["direct"], strict=True):
        assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("directions", [1, 2])
def test_the_sum_as_it_is_written(directions):
    seq = 7
    x, taps = normal(1, 1, seq, grad=False), normal(directions, 1, seq, grad=False)
    expected = torch.zeros(seq, dtype=torch.float64)
    for i in range(seq):
        for j in range(seq):
            if j <= i:
                expected[i] += taps[0, 0, i - j] * x[0, 0, j]
            elif directions == 2:
                expected[i] += taps[1, 0, j - i - 1] * x[0, 0, j]
    for backend in ("fft", "direct"):
        assert_close(long_convolution(x, taps, backend)[0, 0], expected, **EXACT)


def test_only_the_input_and_the_circular_filter_are_saved():
    x, taps = normal(4, 2, 64), normal(2, 4, 64)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        long_convolution(x, taps).sum()
    assert sorted(tuple(t.shape) for t in saved) == sorted([tuple(x.shape), (4, fft_length(64))])
    assert sum(t.nbytes for t in saved) == x.nbytes + taps.nbytes


@pytest.mark.parametrize("seq", [1, 2, 3, 16, 17, 100, 127, 500, 1000, 2048, 5000])
def test_fft_length_is_the_smallest_smooth_one(seq):
    def smooth(n):
        for prime in (2, 3, 5):
            while n % prime == 0:
                n //= prime
        return n == 1

    expected = next(n for n in range(2 * seq - 1, 4 * seq + 1) if smooth(n))
    assert fft_length(seq) == expected


def test_wrong_arguments_are_named():
    x = normal(3, 2, 8)
    with pytest.raises(ValueError, match=r"taps must be \(1 or 2, 3, 8\).*got \(2, 3, 9\)"):
        long_convolution(x, normal(2, 3, 9))
    with pytest.raises(ValueError, match="backend"):
        long_convolution(x, normal(2, 3, 8), "fast")


@pytest.mark.parametrize("seq", [1, 2, 5])
def test_short_convolution_and_its_gradients(seq):
    x, weight, bias = normal(3, 4, 2, seq), normal(3, 4, 3), normal(3, 4)
    y = short_convolution(x, weight, bias)
    conv = torch.nn.functional.conv1d(
        torch.nn.functional.pad(x.permute(2, 0, 1, 3).reshape(2, 12, seq), (2, 0)),
        weight.reshape(12, 1, 3), bias.reshape(12), groups=12,
    )  # fmt: skip
    assert_close(y, conv.view(2, 3, 4, seq).permute(1, 2, 0, 3), **EXACT)
    grad = normal(3, 4, 2, seq, seed=3, grad=False)
    expected = torch.autograd.grad(conv, (x, weight, bias), grad.permute(2, 0, 1, 3).reshape(2, 12, seq))
    for found, value in zip(short_convolution_backward(grad, x, weight), expected, strict=True):
        assert_close(found, value, **EXACT)


def problem(seq, directions, residual, masked):
    channels, batch = 6, 2
    tensors = {
        "p": normal(3, channels, batch, seq),
        "weight": normal(3, channels, 3),
        "bias": normal(3, channels),
        "u": normal(channels, batch, seq, seed=1),
        "gated": normal(directions, channels, seq, seed=2),
        "residual": normal(directions, channels, seq, seed=3) if residual else None,
    }
    mask = torch.ones(batch, seq, dtype=torch.bool)
    mask[1, seq // 2 :] = False
    return tensors, mask if masked else None


@pytest.mark.parametrize(
    ("seq", "directions", "residual", "masked"),
    [(1, 2, True, False), (2, 2, True, True), (33, 1, False, True), (64, 2, True, True), (251, 2, True, False)],
)
def test_pieces_equal_the_direct_formula(monkeypatch, seq, directions, residual, masked):
    monkeypatch.setattr(gated_module, "CHUNK_ELEMENTS", 1)  # four channels at a time, and then two
    tensors, mask = problem(seq, directions, residual, masked)
    given = [tensor for tensor in tensors.values() if tensor is not None]
    grad = normal(6, 2, seq, seed=9, grad=False)
    results = {}
    for backend in ("fft", "direct"):
        y = gated_convolution(**tensors, mask=mask, backend=backend)
        results[backend] = (y, *torch.autograd.grad(y, given, grad, allow_unused=True))
    for found, expected in zip(results["fft"], results["direct"], strict=True):
        expected = torch.zeros_like(found) if expected is None else expected
        assert_close(found, expected, atol=1e-11, rtol=1e-12)
    taps = [k for k in (tensors["gated"], tensors["residual"]) if k is not None]
    size = fft_length(seq)
    with torch.no_grad():
        evaluated = evaluate_gated_convolution(
            *(tensors[name] for name in ("p", "weight", "bias", "u")),
            lambda part: [spectrum(k[:, part], size) for k in taps],
            mask,
        )
    assert_close(evaluated, results["direct"][0], atol=1e-11, rtol=1e-12)


def test_chunks_cover_the_channels_once():
    for channels, batch, seq in [(768, 1, 128), (768, 4, 8192), (10, 1, 10**6), (3, 1, 1)]:
        parts = list(channel_chunks(channels, batch, seq))
        assert [i for part in parts for i in range(channels)[part]] == list(range(channels))


def test_training_keeps_no_spectrum():
    tensors, _ = problem(64, 2, True, False)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        gated_convolution(**tensors)
    assert not any(t.is_complex() for t in saved)
    assert sum(t.numel() for t in saved) == sum(t.numel() for t in tensors.values())
