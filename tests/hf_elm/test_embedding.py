"""`embed_texts`: the model's own vectors, whatever the batch, and clear refusals."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from hf_elm.embedding import TextEmbedder, embed_texts
from hf_elm.modeling.m2_bert import M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel
from tests.hf_elm.tiny_embedder import texts, tiny_embedder, tiny_tokenizer


TEXTS = texts()
TOLERANCE = 1e-5  # float32 sums in another order, magnified by the filters' sines


@torch.no_grad()
def one_by_one(model, tokenizer, these, **options):
    """The model's own vectors of texts that were never padded."""
    rows = (model(**tokenizer(text, return_tensors="pt"), **options) for text in these)
    return torch.cat([row.sentence_embedding for row in rows]).numpy()


@pytest.mark.parametrize("padding_mode", ["mask", "reference"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_vectors_are_the_models_own(padding_mode, pooling):
    model, tokenizer = tiny_embedder(padding_mode=padding_mode, pooling=pooling), tiny_tokenizer()
    expected = one_by_one(model, tokenizer, TEXTS)
    for tokens_per_batch in (1, 150, 100_000):
        found = embed_texts(model, tokenizer, TEXTS, tokens_per_batch=tokens_per_batch)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
    assert np.abs(expected[:, None] - expected).max(-1)[~np.eye(len(TEXTS), dtype=bool)].min() > 1e-3  # all differ


def test_float64_is_exact_and_stays_float64():
    model, tokenizer = tiny_embedder(dtype=torch.float64), tiny_tokenizer(padding_side="left")
    found = embed_texts(model, tokenizer, TEXTS, batch_size=7)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, one_by_one(model, tokenizer, TEXTS), atol=1e-12, rtol=0)


def test_rows_that_the_model_does_not_pad_are_never_padded():
    """padding_mode="reference" with pad_to_length=0 reads padding as tokens, so that a batch may hold equal lengths alone."""
    model, tokenizer = tiny_embedder(padding_mode="reference", pad_to_length=0), tiny_tokenizer()
    found = embed_texts(model, tokenizer, TEXTS)
    np.testing.assert_allclose(found, one_by_one(model, tokenizer, TEXTS), atol=TOLERANCE, rtol=0)


def test_batches_hold_the_tokens_they_may_and_every_text_once():
    model, tokenizer = tiny_embedder(), tiny_tokenizer()
    embedder = TextEmbedder(model, tokenizer, tokens_per_batch=100, batch_size=5)
    lengths = [len(row) for row in embedder.tokenize(TEXTS)]
    batches = list(embedder._batches(lengths))
    assert sorted(i for batch in batches for i in batch) == list(range(len(TEXTS)))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 100 and len(batch) <= 5 for batch in batches)
    assert len(batches) < len(TEXTS) / 1.5
    published = TextEmbedder(tiny_embedder(padding_mode="reference"), tokenizer, tokens_per_batch=200)
    assert {len(batch) for batch in published._batches([3] * 9)} == {3}  # each row is padded to 64


def test_options_of_the_vector():
    model, tokenizer = tiny_embedder(normalize_embeddings=False), tiny_tokenizer()
    plain = embed_texts(model, tokenizer, TEXTS)
    short = embed_texts(model, tokenizer, TEXTS, truncate_dim=5, normalize=True)
    np.testing.assert_allclose(short, plain[:, :5] / np.linalg.norm(plain[:, :5], axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(
        short, one_by_one(model, tokenizer, TEXTS, truncate_dim=5, normalize=True), atol=TOLERANCE
    )
    model.config.truncate_dim = 7
    assert embed_texts(model, tokenizer, TEXTS[:2]).shape == (2, 7)
    prompted = embed_texts(model, tokenizer, TEXTS[:5], prompt="energy of ")
    np.testing.assert_array_equal(prompted, embed_texts(model, tokenizer, ["energy of " + text for text in TEXTS[:5]]))


@torch.no_grad()
def test_another_pooling_than_the_models():
    model, tokenizer = tiny_embedder(normalize_embeddings=False), tiny_tokenizer()
    text = "the energy of a token"
    states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    found = embed_texts(model, tokenizer, [text, TEXTS[1]], pooling="mean", pool_with_dense=False)[0]
    assert_close(torch.from_numpy(found), states.mean(0), atol=TOLERANCE, rtol=0)
    found = embed_texts(model, tokenizer, [text], pooling="mean")[0]
    assert_close(
        torch.from_numpy(found), torch.tanh(model.m2_bert.pooler.dense(states.mean(0))), atol=TOLERANCE, rtol=0
    )


def test_long_texts_are_refused_or_cut_and_counted():
    model, tokenizer = tiny_embedder(max_position_embeddings=16), tiny_tokenizer()
    long, short = " ".join(["energy"] * 30), " ".join(["energy"] * 14)
    with pytest.raises(ValueError, match=r"text 1 has 32 tokens, more than max_length = 16 \(2 texts.*truncate=True"):
        embed_texts(model, tokenizer, [short, long, long])
    with pytest.warns(UserWarning, match="2 of 3 texts were cut to 16 tokens"):
        found = embed_texts(model, tokenizer, [short, long, long], truncate=True)
    np.testing.assert_allclose(found[1:], found[[0, 0]], atol=TOLERANCE)  # [SEP] stays
    with pytest.raises(ValueError, match="more than max_length = 8"):
        embed_texts(model, tokenizer, [short], max_length=8)


def test_the_model_is_left_as_it_was():
    model, tokenizer = tiny_embedder(hidden_dropout_prob=0.5).train(), tiny_tokenizer()
    first = embed_texts(model, tokenizer, TEXTS[:4])
    assert model.training
    assert model.m2_bert.encoder.training
    np.testing.assert_array_equal(first, embed_texts(model, tokenizer, TEXTS[:4]))  # no dropout
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_any_head_embeds_if_it_has_what_the_pooling_needs():
    tokenizer, embedder = tiny_tokenizer(), tiny_embedder()
    expected = embed_texts(embedder, tokenizer, TEXTS[:3])
    for cls in (M2BertModel, M2BertForSequenceClassification):
        model = tiny_embedder(cls)
        model.base_model.load_state_dict(embedder.m2_bert.state_dict())
        np.testing.assert_array_equal(embed_texts(model, tokenizer, TEXTS[:3]), expected)
    model = tiny_embedder(M2BertForMaskedLM)
    with pytest.raises(ValueError, match=r"no dense pooling layer.*pool_with_dense=False"):
        embed_texts(model, tokenizer, TEXTS[:3])
    assert embed_texts(model, tokenizer, TEXTS[:3], pooling="mean", pool_with_dense=False).shape == (3, 32)


@pytest.mark.parametrize(
    ("these", "options", "error", "message"),
    [
        ([], {}, ValueError, "texts is empty"),
        ("the energy", {}, TypeError, "put it in a list"),
        (["a", None], {}, TypeError, "NoneType at 1"),
        (["a"], {"pooling": "max"}, ValueError, "pooling must be one of .*'max'"),
        (["a"], {"truncate_dim": 33}, ValueError, r"truncate_dim must be from 1 to hidden_size \(32\), got 33"),
        (["a"], {"truncate_dim": 0}, ValueError, "truncate_dim must be"),
        (["a"], {"max_length": 65}, ValueError, r"max_length must be .* max_position_embeddings \(64\), got 65"),
        (["a"], {"max_length": 2}, ValueError, "above the 2 special tokens"),
        (["a"], {"tokens_per_batch": 0}, ValueError, "tokens_per_batch must be at least 1"),
        (["a"], {"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ],
)
def test_bad_input_is_refused_by_name(these, options, error, message):
    with pytest.raises(error, match=message):
        embed_texts(tiny_embedder(), tiny_tokenizer(), these, **options)


def test_a_tokenizer_or_model_that_does_not_fit_is_refused():
    from transformers import BertConfig, BertModel

    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    with pytest.raises(TypeError, match=r"M2-BERT encoder, got BertModel \(bert\)"):
        embed_texts(BertModel(BertConfig(vocab_size=30, **small)), tiny_tokenizer(), ["a"])
    with pytest.raises(
        ValueError, match=r"text 1 has the token id .* vocab_size = 9; the tokenizer is not this model's"
    ):
        embed_texts(tiny_embedder(vocab_size=9), tiny_tokenizer(), ["energy", "directions"])
    with pytest.raises(ValueError, match="text 1 has no tokens; leave empty texts out"):
        embed_texts(tiny_embedder(), tiny_tokenizer(special_tokens=False), ["a", "", "a"])
    broken = tiny_embedder()
    torch.nn.init.constant_(broken.m2_bert.pooler.dense.weight, float("nan"))
    with pytest.raises(ValueError, match="a vector is not finite"):
        embed_texts(broken, tiny_tokenizer(), ["a"])
