"""Heads, cache of spectra, numerics and the manners of a transformers model."""

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from hf_elm.modeling.m2_bert import (
    M2BertForMaskedLM,
    M2BertForQuestionAnswering,
    M2BertForSentenceEmbedding,
    M2BertForSequenceClassification,
    M2BertForTokenClassification,
    M2BertModel,
    gated_convolution,
)
from tests.modeling.m2_bert.tiny_m2_bert import tiny_config, tiny_model, tokens


HEADS = {
    AutoModel: M2BertModel,
    AutoModelForMaskedLM: M2BertForMaskedLM,
    AutoModelForSequenceClassification: M2BertForSequenceClassification,
    AutoModelForTokenClassification: M2BertForTokenClassification,
    AutoModelForQuestionAnswering: M2BertForQuestionAnswering,
}


def labelled(cls):
    """Inputs with labels of each head."""
    ids = tokens(2, 12)
    if cls is M2BertForSequenceClassification:
        return {"input_ids": ids, "labels": torch.tensor([0, 1])}
    if cls is M2BertForQuestionAnswering:
        return {"input_ids": ids, "start_positions": torch.tensor([1, 3]), "end_positions": torch.tensor([2, 5])}
    labels = ids if cls is M2BertForMaskedLM else ids % 2
    return {"input_ids": ids, "labels": labels.masked_fill(tokens(2, 12, seed=1) % 2 == 0, -100)}


@pytest.mark.parametrize("auto", HEADS)
def test_auto_classes_find_the_heads(auto):
    assert type(auto.from_config(tiny_config())) is HEADS[auto]


@pytest.mark.parametrize("cls", [cls for cls in HEADS.values() if cls is not M2BertModel])
def test_every_parameter_receives_gradient(cls):
    model = tiny_model(cls).train()
    model(**labelled(cls)).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_shapes_and_hidden_states():
    ids = tokens(2, 10)
    out = tiny_model()(ids, output_hidden_states=True)
    assert out.last_hidden_state.shape == (2, 10, 32)
    assert out.pooler_output.shape == (2, 32)
    assert [tuple(h.shape) for h in out.hidden_states] == [(2, 10, 32)] * 3
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    assert tiny_model()(ids).hidden_states is None
    assert tiny_model(M2BertForMaskedLM)(ids).logits.shape == (2, 10, 96)
    assert tiny_model(M2BertForTokenClassification, num_labels=5)(ids).logits.shape == (2, 10, 5)
    assert tiny_model(M2BertForQuestionAnswering)(ids).end_logits.shape == (2, 10)
    assert tiny_model(M2BertForSequenceClassification, num_labels=3)(ids, return_dict=False)[0].shape == (2, 3)


def test_inputs_embeds_equal_ids():
    model, ids = tiny_model(), tokens(2, 10)
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model(ids).last_hidden_state, model(inputs_embeds=embeds).last_hidden_state)


@pytest.mark.parametrize("bidirectional", [True, False])
@torch.no_grad()
def test_which_tokens_see_which(bidirectional):
    model = tiny_model(dtype=torch.float64, bidirectional=bidirectional)
    ids = tokens(1, 20)
    changed = ids.clone()
    changed[0, 10] = (changed[0, 10] + 1) % 96
    difference = (model(ids).last_hidden_state - model(changed).last_hidden_state).abs().amax(-1)[0]
    assert (difference[10:] > 1e-9).all()
    assert (difference[:10] > 1e-9).all() if bidirectional else (difference[:10] < 1e-12).all()


def test_training_and_evaluation_paths_agree():
    model, ids = tiny_model(dtype=torch.float64), tokens(3, 37)
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    with torch.no_grad():
        expected = model(ids, mask).last_hidden_state
    assert_close(model.train()(ids, mask).last_hidden_state, expected, atol=1e-11, rtol=1e-11)


def test_masked_lm_loss():
    model, ids = tiny_model(M2BertForMaskedLM, dtype=torch.float64), tokens(2, 12)
    labels = ids.masked_fill(tokens(2, 12, seed=1) % 3 > 0, -100)
    out = model(ids, labels=labels)
    log_probs = out.logits.log_softmax(-1).gather(2, ids[..., None])[..., 0]
    picked = labels != -100
    assert_close(out.loss, -log_probs[picked].mean())
    assert_close(model(ids, labels=labels, num_items_in_batch=7).loss, -log_probs[picked].sum() / 7)
    training = model.train()(ids, labels=labels)
    assert training.logits is None  # at the labelled places only
    assert_close(training.loss, out.loss)
    assert model(ids, labels=labels, output_logits=True).logits.shape == (2, 12, 96)


def test_a_batch_without_labels_has_a_finite_loss():
    model, ids = tiny_model(M2BertForMaskedLM), tokens(2, 12)
    for mode in (True, False):
        loss = model.train(mode)(ids, labels=torch.full_like(ids, -100)).loss
        assert loss == 0
        loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_sentence_embeddings():
    model, ids = tiny_model(M2BertForSentenceEmbedding), tokens(2, 12)
    full = model(ids, normalize=False).sentence_embedding
    assert torch.equal(full, model.m2_bert(ids).pooler_output)
    assert_close(model(ids).sentence_embedding.norm(dim=-1), torch.ones(2))
    short = model(ids, truncate_dim=8).sentence_embedding
    assert_close(short, torch.nn.functional.normalize(full[:, :8], dim=-1))
    mean = tiny_model(M2BertForSentenceEmbedding, pooling="mean", pool_with_dense=False)
    expected = mean.m2_bert(ids).last_hidden_state.mean(1)
    assert_close(mean(ids, normalize=False).sentence_embedding, expected)
    with pytest.raises(ValueError, match=r"truncate_dim must be from 1 to hidden_size \(32\), got 33"):
        model(ids, truncate_dim=33)


# --------------------------------------------------------------------------------------------------- cached spectra


def cached_bytes(model):
    return sum(layer.mixer.spectra.num_bytes for layer in model.encoder.layers)


@torch.no_grad()
def test_cached_spectra_change_nothing_and_stay_in_their_budget():
    model, fresh = tiny_model(), tiny_model(kernel_cache_bytes=0)
    need = 2 * 2 * 32 * 17 * 8  # layers, filters, channels, bins of rows of 16 tokens (FFT of 32), complex64
    tight = tiny_model(kernel_cache_bytes=need + 100)
    for seq in (16, 30, 5, 16, 5, 12):
        ids = tokens(2, seq)
        expected = fresh(ids).last_hidden_state
        for each in (model, tight):
            assert_close(each(ids).last_hidden_state, expected, atol=1e-6, rtol=1e-6)
            assert_close(each(ids).last_hidden_state, expected, atol=1e-6, rtol=1e-6)
        assert cached_bytes(tight) <= need + 100
    assert cached_bytes(fresh) == 0
    assert cached_bytes(model) > need


@pytest.mark.parametrize("elements", [1, 16 * 16, 16 * 64, 16 * 128])
@torch.no_grad()
def test_filters_made_block_by_block_are_those_made_at_once(monkeypatch, elements):
    """Every size of the channel pieces against the 64-channel blocks of the filters; 200 channels fill neither."""
    fields = {"hidden_size": 200, "num_hidden_layers": 1, "dtype": torch.float64}
    ids, expected = tokens(1, 16), None
    for cache in (2**20, 0):
        monkeypatch.setattr(gated_convolution, "CHUNK_ELEMENTS", elements)
        states = tiny_model(kernel_cache_bytes=cache, **fields)(ids).last_hidden_state
        if expected is not None:
            assert_close(states, expected, atol=1e-12, rtol=0)
        expected = states


def step(model):
    ids = tokens(1, 9)
    with torch.enable_grad():
        model(ids).last_hidden_state.square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()


def scale(model):
    with torch.no_grad():
        model.encoder.layers[0].mixer.gated_filter.skip.mul_(1.5)


def edit_data(model):
    model.encoder.layers[1].mixer.residual_filter.weight_out.data.mul_(1.5)


def load(model):
    model.load_state_dict(tiny_model(seed=5).state_dict())


def replace(model):
    filter = model.encoder.layers[0].mixer.gated_filter
    filter.frequency = torch.nn.Parameter(filter.frequency * 1.1)


@pytest.mark.parametrize("change", [step, scale, edit_data, load, replace])
@torch.no_grad()
def test_cached_spectra_are_dropped_when_a_weight_changes(change):
    model, ids = tiny_model(), tokens(2, 16)
    before = model(ids).last_hidden_state
    assert cached_bytes(model) > 0
    change(model)
    after = model(ids).last_hidden_state
    expected = copy.deepcopy(model)(ids).last_hidden_state
    assert (after - before).abs().max() > 1e-4
    assert torch.equal(after, expected)


@torch.no_grad()
def test_copies_pickles_and_other_dtypes_start_without_spectra():
    model, ids = tiny_model(), tokens(2, 16)
    expected = model(ids).last_hidden_state
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert cached_bytes(other) == 0
        assert torch.equal(other(ids).last_hidden_state, expected)
    assert_close(model.double()(ids).last_hidden_state, expected.double(), atol=2e-3, rtol=0)
    assert cached_bytes(model.train()) == 0


def test_spectra_of_inference_mode_do_not_reach_training():
    model, ids = tiny_model(), tokens(2, 16)
    with torch.inference_mode():
        inferred = model(ids).last_hidden_state.clone()
    with torch.no_grad():
        assert torch.equal(model(ids).last_hidden_state, inferred)
    model(ids).last_hidden_state.sum().backward()


# -------------------------------------------------------------------------------------------------------- numerics


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_filters_in_float32(dtype):
    model, ids = tiny_model(M2BertForMaskedLM), tokens(2, 16)
    seen = []
    forward = type(model.m2_bert.encoder.layers[0].mixer.gated_filter).forward
    for layer in model.m2_bert.encoder.layers:
        filter = layer.mixer.gated_filter
        filter.forward = lambda length, f=filter: seen.append(forward(f, length).features.dtype) or forward(f, length)
    expected = model(ids).logits
    with torch.autocast("cpu", dtype):
        out = model(ids, labels=ids)
    out.loss.backward()
    assert set(seen) == {torch.float32}
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert (out.logits.float() - expected).abs().max() < 0.1 * expected.abs().max()


@torch.no_grad()
def test_a_bfloat16_model_keeps_its_filters_in_float32(tmp_path):
    model, ids = tiny_model(), tokens(2, 16)
    model.save_pretrained(tmp_path)
    half = M2BertModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert half.encoder.layers[0].mixer.in_proj.weight.dtype == torch.bfloat16
    assert half.encoder.layers[0].mixer.gated_filter.weight_mid.dtype == torch.float32
    out = half(ids).last_hidden_state
    assert out.dtype == torch.bfloat16
    assert (out.float() - model(ids).last_hidden_state).abs().max() < 0.3
    assert (
        model.to(torch.bfloat16)(ids).last_hidden_state.dtype == torch.bfloat16
    )  # cast by hand: still computed in float32


@pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers renames the method
def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(M2BertForMaskedLM, dtype=torch.float64).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**labelled(M2BertForMaskedLM)).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, atol=1e-12, rtol=1e-12)


@pytest.mark.slow
def test_compiled_model_gives_the_same():
    model, ids = tiny_model(M2BertForMaskedLM), tokens(2, 16)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_close(compiled(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    out, expected = compiled(ids, labels=ids), model(ids, labels=ids)
    assert_close(out.loss, expected.loss)
    found = torch.autograd.grad(out.loss, list(model.parameters()))
    wanted = torch.autograd.grad(expected.loss, list(model.parameters()))
    for a, b in zip(found, wanted, strict=True):
        assert_close(a, b, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_layers_with_hooks_and_adapters_are_called():
    """The direct product on the weights of in_proj and out_proj must not bypass what others attach to them."""
    model, ids = tiny_model(), tokens(2, 16)
    expected, calls = model(ids).last_hidden_state, []
    for layer in model.encoder.layers:
        layer.mixer.in_proj.register_forward_hook(lambda module, args, out: calls.append(out.shape))
    assert_close(model(ids).last_hidden_state, expected, atol=1e-6, rtol=1e-6)
    assert calls == [torch.Size([2, 16, 96])] * 2


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_lora_reaches_the_projections():
    peft = pytest.importorskip("peft")
    model, ids = tiny_model(), tokens(2, 16)
    with torch.no_grad():
        expected = model(ids).last_hidden_state
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["in_proj", "out_proj"], r=2)).eval()
    with torch.no_grad():
        assert_close(adapted(ids).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        assert (adapted(ids).last_hidden_state - expected).abs().max() > 1e-2


@torch.no_grad()
def test_offloaded_weights():
    accelerate = pytest.importorskip("accelerate")
    model, ids = tiny_model(), tokens(2, 16)
    expected = model(ids).last_hidden_state
    accelerate.cpu_offload(model)
    assert_close(model(ids).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


def test_resized_embeddings_stay_tied():
    model = tiny_model(M2BertForMaskedLM)
    model.resize_token_embeddings(100)
    assert model(tokens(1, 8)).logits.shape == (1, 8, 100)
    assert model.lm_head.decoder.weight is model.m2_bert.embeddings.word_embeddings.weight


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_ids": tokens(1, 65)}, ValueError, "rows of 65 tokens are longer than max_position_embeddings = 64"),
        ({"input_ids": tokens(1, 8) + 96}, ValueError, r"input_ids must be in \[0, vocab_size\) = \[0, 96\)"),
        ({"input_ids": tokens(1, 8).float()}, TypeError, "input_ids must be integers, got torch.float32"),
        ({"input_ids": tokens(8)}, ValueError, r"input_ids must be \(batch, seq\), got \(8,\)"),
        ({}, ValueError, "give input_ids or inputs_embeds"),
        ({"inputs_embeds": torch.zeros(1, 8, 31)}, ValueError, r"hidden_size = 32\), got \(1, 8, 31\)"),
        (
            {"input_ids": tokens(1, 8), "attention_mask": torch.ones(1, 1, 8, 8)}, ValueError,
            r"attention_mask must be \(batch, seq\) = \(1, 8\), got \(1, 1, 8, 8\)",
        ),
        (
            {"input_ids": tokens(1, 8), "token_type_ids": torch.full((1, 8), 2)}, ValueError,
            r"token_type_ids must be in \[0, type_vocab_size\)",
        ),
    ],
)  # fmt: skip
def test_wrong_inputs_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        tiny_model()(**arguments)


def test_wrong_labels_are_named():
    ids = tokens(1, 8)
    with pytest.raises(ValueError, match=r"labels must be -100 or in \[0, 96\), got 96"):
        tiny_model(M2BertForMaskedLM)(ids, labels=torch.full_like(ids, 96))
    with pytest.raises(ValueError, match=r"labels must be \(batch, seq\) = \(1, 8\), got \(1,\)"):
        tiny_model(M2BertForTokenClassification)(ids, labels=ids[:, 0])


def test_positions_cannot_be_given_where_rows_are_laid_out():
    with pytest.raises(ValueError, match="position_ids cannot be given"):
        tiny_model(padding_mode="reference")(tokens(1, 8), position_ids=torch.arange(8)[None])
