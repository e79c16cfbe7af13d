"""Fields of the three configurations: one checker in three copies, refusals by name, and no field that fills the memory."""

import math
from pathlib import Path

import pytest

from hf_elm.modeling.m2_bert import M2BertConfig
from hf_elm.modeling.monarc import MonArcConfig, MonArcForCausalLM
from hf_elm.modeling.nano_ebm import NanoEBMConfig, NanoEBMForRefinement


FOLDER = Path(__file__).parents[2] / "modeling"
CONFIGS = (MonArcConfig, NanoEBMConfig, M2BertConfig)


def test_the_copies_are_equal():
    texts = {(FOLDER / family / "field_types.py").read_text() for family in ("monarc", "nano_ebm", "m2_bert")}
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (NanoEBMConfig, {"aux_ce_weight": None}, "aux_ce_weight must be a finite number, got None"),
        (NanoEBMConfig, {"hidden_size": None}, "hidden_size must be an integer of 64 bits, got None"),
        (NanoEBMConfig, {"think_lr": math.nan}, "think_lr must be a finite number, got nan"),
        (NanoEBMConfig, {"use_thinking": "no"}, "use_thinking must be true or false, got 'no'"),
        (MonArcConfig, {"energy_bound": "5"}, "energy_bound must be a finite number or None, got '5'"),
        (MonArcConfig, {"energy_adapter_targets": [1]}, r"energy_adapter_targets must be text or a list of texts, got \[1\]"),
        (MonArcConfig, {"text_config": [1]}, r"text_config must be a transformers config, a mapping or None, got \[1\]"),
        (MonArcConfig, {"text_config": {"model_type": ["llama"]}}, "text_config.model_type"),
        (MonArcConfig, {"text_config": {"model_type": "llama", "hidden_size": {}}}, "text_config: .*'hidden_size'.*expected int"),
        (NanoEBMConfig, {"text_config": {"model_type": "no_such"}}, "text_config.model_type \"no_such\" is not known.*nearest"),
        (M2BertConfig, {"initializer_range": [None]}, r"initializer_range must be a finite number, got \[None\]"),
        (M2BertConfig, {"filter_freq": 2**64}, "filter_freq must be a finite number, got 1844"),
        (MonArcConfig, {"num_negatives": 10**29}, "num_negatives must be an integer of 64 bits, got 1000"),
        (M2BertConfig, {"filter_freq": 10**400}, "filter_freq must be a finite number, got 1000"),
    ],
)  # fmt: skip
def test_a_field_of_the_wrong_type_is_named(config, fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        config(**fields)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_labels": 2**31}, "num_labels must be at most"),
        ({"attn_implementation": ["sdpa"]}, "attn_implementation must be text or a mapping or None"),
        ({"auto_map": [None]}, "auto_map must be a mapping or None"),
        ({"dtype": []}, "dtype must be text or a mapping or None"),
        ({"quantization_config": 7}, "quantization_config must be a mapping or None"),
        ({"rope_parameters": 7}, "fields of every transformers config .*rope_parameters"),
    ],
)
def test_fields_of_every_config_are_refused_by_name(config, fields, message):
    with pytest.raises(ValueError, match=message):
        config(**fields)


@pytest.mark.parametrize("model", [MonArcForCausalLM, NanoEBMForRefinement])
def test_a_language_model_that_cannot_be_built_is_told_in_one_sentence(model):
    small = {"vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(ValueError, match=r"^text_config: .*T5Config") as caught:
        model(model.config_class(text_config={"model_type": "t5", **small}))
    assert len(str(caught.value)) < 1000
