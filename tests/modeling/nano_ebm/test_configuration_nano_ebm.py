"""Configurations: presets, the range of every field, and what survives saving."""

import re

import pytest

from hf_elm.modeling.nano_ebm import NanoEBMConfig, NanoEBMForRefinement
from hf_elm.modeling.nano_ebm.configuration_nano_ebm import OWN_FIELDS, PRESETS
from tests.modeling.nano_ebm.tiny_nano_ebm import SIZES, TEXT_CONFIG


BAD = [
    ("energy_type", "quadratic"), ("geometry", "euclid"), ("grad_reduction", "sum"), ("refinement_loss", "first"),
    ("contrastive_type", "nce"), ("use_soft_tokens", "yes"), ("use_soft_tokens", 1), ("norm_type", "none"),
    ("position_type", "alibi"), ("think_lr", 1.5), ("think_lr", 0.0), ("think_lr", -0.1), ("think_lr", float("nan")),
    ("think_lr", "fast"), ("think_steps", -1), ("think_steps", 2.0), ("think_steps", True), ("think_max_move", -1),
    ("think_tolerance", -1e-3), ("langevin_noise", -1.0), ("langevin_step_size", 1.5), ("entropy_weight", 0.0),
    ("softmax_temperature", 0.0), ("aux_ce_weight", 1.5), ("contrastive_k", 0), ("n_persistent", 0), ("restart_prob", 2.0),
    ("chain_momentum", 1.0), ("num_attention_heads", 5), ("energy_heads", 5), ("vocab_size", 0), ("dropout", 1.0),
    ("energy_context", -1), ("energy_power", 3), ("energy_feedback", 0.0), ("energy_feedback", -0.5),
    ("freeze_lm", True), ("info_nce_weight", -1.0), ("hidden_size", 32.0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_field_out_of_range_is_named_with_value_and_rule(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be .*got {re.escape(repr(value))}"):
        NanoEBMConfig(**(SIZES | {name: value}))


def test_the_guarantee_says_how_to_have_larger_steps():
    with pytest.raises(ValueError, match=r'in \(0, 1\] with geometry="mirror".*larger ones go with geometry="logits"'):
        NanoEBMConfig(think_lr=5.0)
    config = NanoEBMConfig(think_lr=5.0, langevin_step_size=2.0, geometry="logits", entropy_weight=0.0)
    assert not config.descent_guaranteed
    assert NanoEBMConfig().descent_guaranteed
    assert not NanoEBMConfig(mixture_stopgrad=False).descent_guaranteed
    assert NanoEBMConfig(mixture_stopgrad=False, energy_type="linear").descent_guaranteed
    assert not NanoEBMConfig(use_soft_tokens=True).descent_guaranteed


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("tiny", 159_778), ("small", 816_834), ("published", 162_496 + 4)],  # the original's, and a step size per step
)
def test_presets_have_their_sizes_and_take_overrides(name, parameters):
    config = NanoEBMConfig.preset(name, vocab_size=65, think_steps=PRESETS[name].get("think_steps", 2))
    assert config.vocab_size == 65
    assert NanoEBMForRefinement(config).num_parameters() == parameters


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"preset must be one of .*'published'.*, got \"large\""):
        NanoEBMConfig.preset("large")


def test_every_field_is_documented():
    for name in OWN_FIELDS:
        assert re.search(rf"\b{name}\b", NanoEBMConfig.__doc__), name


def test_a_language_model_decides_the_sizes():
    config = NanoEBMConfig(text_config=TEXT_CONFIG | {"vocab_size": 77}, hidden_size=999, freeze_lm=True)
    assert (config.vocab_size, config.hidden_size, config.energy_units) == (77, 32, 48)
    with pytest.raises(ValueError, match="use_soft_tokens must be False with text_config"):
        NanoEBMConfig(text_config=TEXT_CONFIG, use_soft_tokens=True)
    with pytest.raises(ValueError, match=r'text_config.model_type "nothing" is not known'):
        NanoEBMConfig(text_config={"model_type": "nothing"})


@pytest.mark.parametrize("fields", [{}, {"text_config": TEXT_CONFIG}, {"use_soft_tokens": "published"}])
def test_saving_keeps_every_field(tmp_path, fields):
    config = NanoEBMConfig(**(SIZES | fields), think_steps=5, think_lr=0.25, energy_units=7)
    config.save_pretrained(tmp_path)
    again = NanoEBMConfig.from_pretrained(tmp_path)
    for name in OWN_FIELDS - {"text_config"}:
        assert getattr(again, name) == getattr(config, name), name
    assert type(again.text_config) is type(config.text_config)


def test_the_energys_sizes_follow_from_what_it_sees():
    config = NanoEBMConfig(**SIZES)
    assert (config.energy_context, config.energy_units) == (3, 48)
    assert (
        NanoEBMConfig(**SIZES, energy_heads=0).energy_context,
        NanoEBMConfig(**SIZES, energy_heads=0).energy_units,
    ) == (0, 128)
    assert NanoEBMConfig(**SIZES, energy_context=0).energy_units == 128
    with pytest.raises(ValueError, match=r"energy_context must be 0 without memory .*got 2"):
        NanoEBMConfig(**SIZES, energy_heads=0, energy_context=2)
