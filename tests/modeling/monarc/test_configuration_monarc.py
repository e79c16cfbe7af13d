"""Fields are checked when a configuration is made; presets have the published sizes."""

import pytest
import torch
from transformers import AutoConfig, LlamaConfig

from hf_elm.modeling.monarc import MonArcConfig, MonArcForCausalLM


def num_parameters(config):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in MonArcForCausalLM(config).parameters())


@pytest.mark.parametrize(("name", "layers", "hidden", "inner"), [("163m", 12, 768, 2048), ("430m", 24, 1024, 3072)])
def test_presets_have_the_published_sizes(name, layers, hidden, inner):
    vocab = 50258
    norm = 2 * hidden
    layer = 4 * hidden**2 + 3 * hidden + 3 * hidden * inner + 2 * norm  # qkv with bias, o, SwiGLU, two LayerNorms
    lm = 2 * vocab * hidden + layers * layer + norm  # untied
    energy = norm + 2 * (hidden**2 + hidden) + 2 * hidden
    assert num_parameters(MonArcConfig.preset(name)) == lm + energy
    assert (lm, energy) == {"163m": (162_196_992, 1_184_256), "430m": (430_258_176, 2_103_296)}[name]


def test_overrides_go_to_the_config_that_knows_them():
    config = MonArcConfig.preset("tiny", vocab_size=258, hidden_size=64, energy_adapter_rank=8, energy_bound=5.0)
    assert (config.text_config.vocab_size, config.text_config.hidden_size) == (258, 64)
    assert (config.energy_adapter_rank, config.energy_bound) == (8, 5.0)
    assert config.text_config.eos_token_id is None  # GPT-2's end of text lies outside this vocabulary
    assert config.get_text_config() is config.text_config
    with pytest.raises(ValueError, match=r'preset must be one of .*163m.*got "7b"'):
        MonArcConfig.preset("7b")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("energy_head", "mlp", r"energy_head must be one of \('bilinear', 'linear'\), got 'mlp'"),
        ("energy_loss", "mse", "energy_loss must be one of"),
        ("two_stream_backend", "flash", "two_stream_backend must be one of"),
        ("energy_bound", 0, "energy_bound must be positive nats, or None for unbounded, got 0"),
        ("energy_loss_weight", -1.0, "zero or positive"),
        ("num_negatives", 0, "an integer of at least 1, got 0"),
        ("num_negatives", 1.5, "num_negatives must be an integer"),
        ("negative_fraction", 0.0, r"negative_fraction must be in \(0, 1\]"),
        ("negative_fraction", 1.1, r"in \(0, 1\], got 1.1"),
        ("energy_adapter_rank", -1, "an integer, 0 for no adapter"),
        ("lm_loss_chunk_size", 0, "lm_loss_chunk_size must be"),
        ("text_config", {"model_type": "nosuch"}, 'text_config.model_type "nosuch" is not known'),
    ],
)
def test_fields_out_of_range_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        MonArcConfig(**{"text_config": {"model_type": "llama"}, field: value})


def test_a_config_survives_its_json(tmp_path):
    config = MonArcConfig(
        text_config=LlamaConfig(hidden_size=64, vocab_size=99), energy_head="linear", energy_bound=2.5
    )
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is MonArcConfig
    assert isinstance(again.text_config, LlamaConfig)
    ours, theirs = ({**each.to_dict(), "_name_or_path": "", "transformers_version": ""} for each in (config, again))
    assert theirs == ours
