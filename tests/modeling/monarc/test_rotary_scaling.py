"""Linear scaling of rotary positions: both streams, rows beyond the original range, saving, and malformed settings."""

import copy

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, StableLmConfig, StableLmForCausalLM

from hf_elm.modeling.monarc import MonArcConfig, MonArcForCausalLM
from hf_elm.modeling.monarc.rotary_scaling import scale_positions
from tests.modeling.monarc.tiny_monarc import double_precision_norms, scatter, text_config, tokens


RANGE, FACTOR = 16, 4.0
LINEAR = {"rope_type": "linear", "factor": FACTOR}
CLASSES = {"stablelm": (StableLmConfig, StableLmForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}


def plain_lm(kind, **overrides):
    """A random LM with ``RANGE`` positions, float64."""
    config_class, model_class = CLASSES[kind]
    fields = text_config(kind, max_position_embeddings=RANGE, **overrides)
    del fields["model_type"]
    torch.manual_seed(0)
    return double_precision_norms(model_class(config_class(**fields)).double()).eval()


def scaled_twin(kind, lm):
    """transformers' own model with linear scaling and the weights of ``lm``."""
    twin = plain_lm(kind, rope_scaling={"type": "linear", "factor": FACTOR})
    twin.load_state_dict(lm.state_dict())
    return twin


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
def test_logits_beyond_the_range_are_those_of_the_scaled_backbone(kind, spelling):
    lm = plain_lm(kind)
    twin, unscaled = scaled_twin(kind, lm), copy.deepcopy(lm)
    model = MonArcForCausalLM.from_causal_lm(lm, **{spelling: dict(LINEAR)})
    ids = tokens(2, 53)  # prime, and beyond 3 * RANGE
    with torch.no_grad():
        logits = model(ids).logits
        assert_close(logits, twin(input_ids=ids).logits, atol=1e-12, rtol=0)
        assert (logits - unscaled(input_ids=ids).logits).abs().max() > 1e-3  # scaling does something
    assert model.config.text_config.max_position_embeddings == FACTOR * RANGE
    assert model.config.text_config.rope_parameters["factor"] == FACTOR


@pytest.mark.parametrize("kind", CLASSES)
def test_candidates_have_the_same_positions_as_true_tokens(kind):
    model = scatter(MonArcForCausalLM.from_causal_lm(plain_lm(kind), rope_scaling=LINEAR))
    double_precision_norms(model)
    ids, others = tokens(1, 47), tokens(1, 3, 47, seed=1)
    with torch.no_grad():
        scores = model.score_candidates(ids, others)
        for place in (1, RANGE, 30, 46):  # each candidate as a true token: the row cut after it
            for k in range(3):
                row = torch.cat([ids[:, :place], others[:, k, place : place + 1]], 1)
                alone = model.score_candidates(row, row.unsqueeze(1))
                assert_close(scores.energies[:, k, place], alone.token_energies[:, place], atol=1e-11, rtol=0)
                assert_close(scores.log_probs[:, k, place], alone.token_log_probs[:, place], atol=1e-11, rtol=0)


def test_position_m_acts_as_m_over_the_factor():
    lm = plain_lm("llama")
    model = MonArcForCausalLM.from_causal_lm(copy.deepcopy(lm), rope_scaling=LINEAR)
    ids = tokens(1, 11)
    stretched = torch.arange(11)[None] * int(FACTOR)
    with torch.no_grad():
        expected = lm(input_ids=ids).logits
        assert_close(model(ids, position_ids=stretched).logits, expected, atol=1e-12, rtol=0)


def test_saved_and_reloaded_twice(tmp_path):
    model = scatter(MonArcForCausalLM.from_causal_lm(plain_lm("stablelm"), rope_scaling=LINEAR))
    ids = tokens(2, 40)
    with torch.no_grad():
        expected = model(ids)
    for name in ("first", "second"):
        model.save_pretrained(tmp_path / name)
        model = MonArcForCausalLM.from_pretrained(tmp_path / name)
        assert model.dtype == torch.float64
        assert model.config.text_config.max_position_embeddings == FACTOR * RANGE
        with torch.no_grad():
            found = model(ids)
        assert torch.equal(found.logits, expected.logits)
        assert torch.equal(found.energies, expected.energies)


def test_a_saved_model_is_scaled_when_it_is_loaded(tmp_path):
    lm = plain_lm("llama").float()
    lm.save_pretrained(tmp_path / "lm")
    MonArcForCausalLM.from_causal_lm(lm).save_pretrained(tmp_path / "elm")
    ids = tokens(1, 29)
    wrapped = MonArcForCausalLM.from_causal_lm(str(tmp_path / "lm"), rope_scaling=LINEAR).eval()
    loaded = MonArcForCausalLM.from_pretrained(tmp_path / "elm", rope_scaling=LINEAR).eval()
    direct = AutoModelForCausalLM.from_pretrained(tmp_path / "lm").eval()
    with torch.no_grad():
        assert torch.equal(wrapped(ids).logits, loaded(ids).logits)
        assert not torch.equal(loaded(ids).logits, direct(input_ids=ids).logits)


def test_generation_goes_beyond_the_range():
    model = MonArcForCausalLM.from_causal_lm(plain_lm("stablelm"), rope_scaling=LINEAR)
    ids = tokens(1, 30)
    found = model.generate(ids, do_sample=False, max_new_tokens=5, num_candidates=4, eos_token_id=None)
    with torch.no_grad():
        logits = model(found).logits  # no energies yet: the greedy token is the LM's
    assert found[0, 30:].tolist() == logits[0, 29:-1].argmax(-1).tolist()


def test_a_new_configuration_takes_the_scaling_and_keeps_it():
    config = MonArcConfig.preset("tiny", vocab_size=64, rope_scaling=dict(LINEAR))
    text = config.text_config
    assert text.rope_parameters["rope_type"] == "linear"
    assert text.rope_parameters["partial_rotary_factor"] == 0.25
    assert text.max_position_embeddings == 4096
    again = MonArcConfig.from_dict(config.to_dict())
    assert again.text_config.rope_parameters == text.rope_parameters
    assert again.text_config.max_position_embeddings == 4096  # applied once


def test_another_factor_replaces_the_first():
    config = MonArcConfig.preset("tiny", vocab_size=64, rope_scaling=LINEAR)
    config.rope_scaling = {"rope_type": "linear", "factor": 2}
    assert config.rope_scaling["factor"] == 2.0
    assert config.text_config.max_position_embeddings == 2048
    config.rope_scaling = {"rope_type": "default"}
    assert config.rope_scaling["rope_type"] == "default"
    assert "factor" not in config.rope_scaling
    assert config.text_config.max_position_embeddings == 1024


@pytest.mark.parametrize(
    ("scaling", "named"),
    [
        (4.0, "rope_scaling must be a mapping"),
        ({"rope_type": "linear"}, r'rope_scaling\["factor"\] must be a number of at least 1'),
        ({"rope_type": "linear", "factor": 0.5}, r'rope_scaling\["factor"\]'),
        ({"rope_type": "linear", "factor": "4"}, r'rope_scaling\["factor"\]'),
        ({"rope_type": "linear", "factor": float("nan")}, r'rope_scaling\["factor"\]'),
        ({"rope_type": "linear", "factor": True}, r'rope_scaling\["factor"\]'),
        ({"factor": 4.0}, r'rope_scaling\["rope_type"\]'),
        ({"rope_type": "dynamic", "factor": 4.0}, r'rope_scaling\["rope_type"\]'),
        ({"rope_type": "linear", "type": "yarn", "factor": 4.0}, r'rope_scaling\["rope_type"\]'),
        ({"rope_type": "default", "factor": 4.0}, r'rope_scaling\["factor"\]'),
        ({"rope_type": "linear", "factr": 4.0}, 'unknown key "factr"; the nearest is "factor"'),
        ({"rope_type": "linear", "factor": 2, "rope_theta": -1}, r'rope_scaling\["rope_theta"\]'),
    ],
)
def test_malformed_settings_are_refused_by_name(scaling, named):
    with pytest.raises(ValueError, match=named):
        MonArcConfig.preset("tiny", vocab_size=64, rope_scaling=scaling)


def test_models_without_rotary_positions_and_other_scalings_are_refused():
    with pytest.raises(ValueError, match="a gpt2 model has no rotary positions"):
        MonArcConfig(text_config=text_config("gpt2"), rope_scaling=LINEAR)
    yarn = text_config("llama", rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4})
    config = MonArcConfig(text_config=yarn)
    with pytest.raises(ValueError, match='has rope_type="yarn" already'):
        scale_positions(config.text_config, LINEAR)
    with pytest.raises(ValueError, match="two names of one thing"):
        MonArcForCausalLM.from_causal_lm(plain_lm("llama"), rope_scaling=LINEAR, rope_parameters=LINEAR)
