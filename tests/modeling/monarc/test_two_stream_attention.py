"""Candidate attention: three backends, one formula; and the seams by which the streams reach a decoder."""

import pytest
import torch
from torch.testing import assert_close

from hf_elm.modeling.monarc.two_stream_attention import (
    BACKENDS,
    TWO_STREAM,
    Stream,
    candidate_attention,
    current_stream,
    stream_pass,
    two_stream_attention,
)
from tests.modeling.monarc.tiny_monarc import (
    ARCHITECTURES,
    gradients,
    layout_inputs,
    scalar,
    tiny_monarc,
    tokens,
)


BATCH, HEADS, DIM = 2, 4, 8
NAMES = ("q", "keys", "values", "k_self", "v_self")


def attention_inputs(copies, kv_heads, seq, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seq)
    shapes = [
        (BATCH * copies, HEADS),
        (BATCH, kv_heads),
        (BATCH, kv_heads),
        (BATCH * copies, kv_heads),
        (BATCH * copies, kv_heads),
    ]
    made = [torch.randn(*shape, seq, DIM, generator=generator, dtype=torch.float64).mul(2) for shape in shapes]
    return [tensor.to(dtype).requires_grad_() for tensor in made]


def prefix_mask(kind, seq):
    """(BATCH, 1, seq, seq): documents of three tokens in row 0; row 1 is left padded by two, whose rows see nothing."""
    if kind == "causal":
        return None
    mask = torch.ones(seq, seq, dtype=torch.bool).tril(-1).repeat(BATCH, 1, 1)
    document = torch.arange(seq) // 3
    mask[0] &= document[:, None] == document[None]
    mask[1, :, :2] = False
    return mask.unsqueeze(1)


def run(backend, copies, kv_heads, seq, mask, dtype=torch.float64):
    """Output and the gradients of all five inputs."""
    inputs = attention_inputs(copies, kv_heads, seq, dtype)
    out = candidate_attention(*inputs, prefix_mask(mask, seq), DIM**-0.5, backend=backend)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    return out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)


@pytest.mark.parametrize("mask", ["causal", "masked"])
@pytest.mark.parametrize("seq", [1, 2, 7, 64])
@pytest.mark.parametrize(("copies", "kv_heads"), [(1, 4), (4, 2)])
def test_backends_are_equal_in_outputs_and_gradients(copies, kv_heads, seq, mask):
    oracle = run("eager", copies, kv_heads, seq, mask)
    for backend in ("merged", "sdpa", "auto"):
        for name, ours, expected in zip(
            ("out", *NAMES), run(backend, copies, kv_heads, seq, mask), oracle, strict=True
        ):
            assert_close(
                ours, expected, atol=1e-10, rtol=0, msg=lambda text, label=(backend, name): f"{label}: {text}"
            )


def test_a_candidate_is_one_more_key_of_a_plain_softmax():
    """The formula itself, query by query: softmax over the keys before t and the candidate's own."""
    q, keys, values, k_self, v_self = (x.detach() for x in attention_inputs(2, HEADS, 7))
    out = candidate_attention(q, keys, values, k_self, v_self, None, 0.3, backend="merged")
    for row, t in ((0, 0), (1, 3), (3, 6)):
        seen = torch.cat([keys[row // 2, :, :t], k_self[row, :, t : t + 1]], 1)
        weights = torch.softmax(seen @ q[row, :, t, :, None] * 0.3, 1)
        expected = (weights * torch.cat([values[row // 2, :, :t], v_self[row, :, t : t + 1]], 1)).sum(1)
        assert_close(out[row, :, t], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("mask", ["causal", "masked"])
def test_half_precision_stays_close(backend, dtype, tolerance, mask):
    """Relative error of a few units in the last place: 2^-8 for bfloat16, 2^-11 for float16."""
    exact = run("eager", 2, 2, 33, mask)
    for name, ours, expected in zip(("out", *NAMES), run(backend, 2, 2, 33, mask, dtype), exact, strict=True):
        assert (ours.double() - expected).norm() <= tolerance * expected.norm(), name


def test_dropout_needs_the_backend_that_has_it():
    inputs = attention_inputs(1, HEADS, 4)
    with pytest.raises(ValueError, match=r'"merged" has no attention dropout, got 0.5; use "sdpa"'):
        candidate_attention(*inputs, None, 1.0, backend="merged", dropout=0.5)
    torch.manual_seed(0)
    a, b = (candidate_attention(*inputs, None, 1.0, backend="auto", dropout=0.5) for _ in range(2))
    assert not torch.equal(a, b)


# ------------------------------------------------------------------------------------------------------ whole models


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("layout", ["plain", "left", "right", "packed"])
def test_models_are_equal_on_every_backend_in_outputs_and_gradients(kind, layout):
    ids, negatives, inputs = tokens(2, 7), tokens(2, 4, 7, seed=1), layout_inputs(layout, 7)
    model = tiny_monarc(kind)
    results = {}
    for backend in BACKENDS:
        model.config.two_stream_backend = backend
        out = model(input_ids=ids, labels=ids, negatives=negatives, **inputs)
        results[backend] = (out.energies, out.negative_energies, out.log_probs, gradients(model, scalar(out)))
    for backend in ("merged", "sdpa"):
        for ours, expected in zip(results[backend], results["eager"], strict=True):
            assert_close(ours, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("seq", [1, 2, 64])
def test_models_are_equal_at_other_lengths(seq):
    ids, negatives = tokens(2, seq), tokens(2, 1, seq, seed=1)
    model = tiny_monarc("llama")
    results = []
    for backend in BACKENDS:
        model.config.two_stream_backend = backend
        out = model(input_ids=ids, labels=ids, negatives=negatives, **layout_inputs("packed", seq))
        results.append((out.energies, out.negative_energies, gradients(model, scalar(out))))
    for ours in results[:2]:
        assert_close(ours, results[2], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_gradient_checkpointing_changes_no_gradient(kind):
    ids, negatives, inputs = tokens(2, 7), tokens(2, 2, 7, seed=1), layout_inputs("packed", 7)
    model = tiny_monarc(kind, energy_adapter_rank=2).train()
    plain = gradients(model, scalar(model(input_ids=ids, labels=ids, negatives=negatives, **inputs)))
    model.activation_checkpointing_enable()
    recomputed = []
    attention = next(module for module in model.lm.modules() if hasattr(module, "layer_idx"))
    attention.register_forward_pre_hook(lambda *_: recomputed.append(not current_stream().recording))
    checkpointed = gradients(model, scalar(model(input_ids=ids, labels=ids, negatives=negatives, **inputs)))
    assert_close(checkpointed, plain, atol=0, rtol=0)
    assert recomputed == [False, False, True, True]  # each stream's layer ran again, and did not record


def test_reentrant_checkpointing_is_refused():
    with pytest.raises(ValueError, match=r"use_reentrant=True.*pass \{'use_reentrant': False\}"):
        tiny_monarc().activation_checkpointing_enable({"use_reentrant": True})


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_users_attention_is_restored_after_every_pass(implementation):
    model = tiny_monarc(text={"attn_implementation": implementation})
    config = model.lm.get_decoder().config
    ids = tokens(2, 7)
    expected = model.lm(input_ids=ids).logits
    out = model(input_ids=ids, labels=ids)
    assert config._attn_implementation == implementation
    assert_close(out.logits, expected, atol=1e-6, rtol=0)  # transformers' eager softmax runs in float32


def test_the_users_attention_is_restored_after_an_error():
    config = tiny_monarc().lm.get_decoder().config
    seen = []

    def fail():
        with stream_pass(Stream("true"), config):
            seen.append(config._attn_implementation)
            raise IndexError

    with pytest.raises(IndexError):
        fail()
    assert seen == [TWO_STREAM]
    assert config._attn_implementation == "sdpa"
    assert current_stream() is None


def test_an_error_inside_a_pass_leaves_the_model_usable(monkeypatch):
    model, ids = tiny_monarc(), tokens(2, 7)
    expected = model(input_ids=ids).energies
    layer = model.lm.model.layers[1]
    with monkeypatch.context() as patch:
        patch.setattr(layer.mlp, "forward", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(input_ids=ids)
    assert torch.equal(model(input_ids=ids).energies, expected)


def test_features_the_candidate_stream_lacks_are_named_with_their_layer():
    class Layer:
        layer_idx = 3

    with pytest.raises(NotImplementedError, match=r"layer 3 uses logit soft-capping \(softcap=50.0\)"):
        two_stream_attention(Layer(), None, None, None, None, softcap=50.0)
