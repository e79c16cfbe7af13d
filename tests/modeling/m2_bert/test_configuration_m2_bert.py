"""Presets have the published sizes, and every field is checked with a message that names it."""

import inspect
import json

import pytest
import torch

from hf_elm.modeling.m2_bert import (
    M2BertConfig,
    M2BertForMaskedLM,
    M2BertForSequenceClassification,
    M2BertModel,
)
from tests.modeling.m2_bert.tiny_m2_bert import FIXTURES


PRESETS = {
    "80m-legacy": "m2-bert-80m (128)",
    "80m": "m2-bert-80m (current yaml, additions off)",
    "110m": "m2-bert-110m (128)",
    "260m": "m2-bert-260m (128)",
    "341m": "m2-bert-341m (128)",
    "341m-2k": "m2-bert-341m-2k",
    "80m-2k": "m2-bert-80M-2k",
    "80m-8k": "m2-bert-80M-8k",
    "80m-32k": "m2-bert-80M-32k",
}


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_counts_are_the_published_ones(name):
    expected = json.loads((FIXTURES / "param_counts.json").read_text())[PRESETS[name]]
    config = M2BertConfig.preset(name)
    with torch.device("meta"):
        masked_lm, classifier = M2BertForMaskedLM(config), M2BertForSequenceClassification(config)
        encoder = M2BertModel(config, add_pooling_layer=False)
    masked_lm.tie_weights()
    assert masked_lm.num_parameters() == expected["mlm_params"]
    assert classifier.num_parameters() == expected["seqcls_params"]
    assert encoder.num_parameters() == expected["encoder_params"]
    assert sum(p.numel() for p in encoder.encoder.layers[0].parameters()) == expected["per_layer"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 0}, r"hidden_size must be an integer of at least 1, got 0"),
        ({"filter_emb_dim": 4}, r"filter_emb_dim must be an odd integer"),
        ({"padding_mode": "left"}, r"padding_mode must be one of \('mask', 'reference'\), got 'left'"),
        ({"conv_backend": "flash"}, r"conv_backend must be one of"),
        ({"pooling": "max"}, r"pooling must be one of"),
        ({"filter_decay": "none"}, r"filter_decay must be one of"),
        ({"truncate_dim": 769}, r"truncate_dim must be from 1 to hidden_size \(768\)"),
        ({"pad_to_length": 64}, r'pad_to_length=64 needs padding_mode="reference"'),
        ({"padding_mode": "reference", "pad_to_length": 129}, r"pad_to_length must be from 0"),
        ({"padding_mode": "reference", "pad_token_id": None}, r"needs a pad_token_id"),
        ({"pad_token_id": 40000}, r"pad_token_id must be below vocab_size"),
        ({"kernel_cache_bytes": -1}, r"kernel_cache_bytes must be"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob must be in"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        M2BertConfig(**fields)


def test_unknown_preset():
    with pytest.raises(ValueError, match=r'preset must be one of .*got "70m"'):
        M2BertConfig.preset("70m")


def test_every_field_is_documented_and_survives_json():
    names = set(inspect.signature(M2BertConfig.__init__).parameters) - {"self", "kwargs"}
    missing = [name for name in names if name not in M2BertConfig.__doc__]
    assert missing in ([], ["pad_token_id", "tie_word_embeddings"], ["tie_word_embeddings", "pad_token_id"])
    config = M2BertConfig.preset("tiny", padding_mode="reference", pad_to_length=32, filter_time_scale=64)
    again = M2BertConfig.from_dict(json.loads(config.to_json_string()))
    assert {name: getattr(again, name) for name in names} == {name: getattr(config, name) for name in names}
    assert (config.time_scale, config.reference_length) == (64, 32)
    assert M2BertConfig(padding_mode="reference").reference_length == 128
    assert M2BertConfig().reference_length == 0


def test_initialisation_statistics():
    """Fresh weights have the spread of the original's, and no two layers start alike."""
    stats = json.loads((FIXTURES / "init_stats_80m.json").read_text())
    torch.manual_seed(0)
    model = M2BertModel(M2BertConfig.preset("80m", vocab_size=64, num_hidden_layers=2))
    layer, other = model.encoder.layers
    prefix = "bert.encoder.layer.0."
    pairs = {
        "attention.in_linear.weight": layer.mixer.in_proj.weight,
        "attention.short_filter.weight": layer.mixer.short_conv.weight,
        "attention.short_filter.bias": layer.mixer.short_conv.bias,
        "attention.filter_fn.bias": layer.mixer.gated_filter.skip,
        "attention.filter_fn.pos_emb.z": layer.mixer.gated_filter.positions,
        "attention.filter_fn.implicit_filter.0.weight": layer.mixer.gated_filter.weight_in,
        "attention.filter_fn.implicit_filter.2.weight": layer.mixer.gated_filter.weight_mid,
        "attention.filter_fn.implicit_filter.6.weight": layer.mixer.gated_filter.weight_out,
        "attention.filter_fn.implicit_filter.1.freq": layer.mixer.gated_filter.frequency,
        "mlp.gated_layers.weight": layer.mlp.up.weight,
        "mlp.wo.weight": layer.mlp.down.weight,
        "mlp.wo.bias": layer.mlp.down.bias,
    }
    for key, tensor in pairs.items():
        expected = stats[prefix + key]
        assert tensor.std().item() == pytest.approx(expected["std"], rel=0.1), key
    assert not torch.equal(layer.mlp.up.weight, other.mlp.up.weight)
    assert not torch.equal(layer.mixer.gated_filter.skip, other.mixer.gated_filter.skip)
    assert torch.count_nonzero(model.embeddings.word_embeddings.weight[0]) == 0
