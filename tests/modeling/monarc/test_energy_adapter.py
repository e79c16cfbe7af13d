"""Weights that act on candidates alone: the language model stays bit-identical, the energies of all tokens move."""

import copy

import pytest
import torch
from torch.testing import assert_close

from hf_elm.modeling.monarc import MonArcForCausalLM
from tests.modeling.monarc.tiny_monarc import (
    ARCHITECTURES,
    gradients,
    layout_inputs,
    scatter,
    text_config,
    tiny_monarc,
    tokens,
)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_lm_is_bit_identical_and_every_energy_moves(kind):
    ids, negatives, inputs = tokens(2, 7), tokens(2, 2, 7, seed=1), layout_inputs("packed", 7)
    model = tiny_monarc(kind, dtype=torch.float32, energy_adapter_rank=4)
    zeroed = copy.deepcopy(model)
    for delta in zeroed.energy_adapter.values():
        torch.nn.init.zeros_(delta.up.weight)
    with torch.no_grad():
        plain = model.lm(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits, plain)
        out, base = (each(input_ids=ids, negatives=negatives, labels=ids, **inputs) for each in (model, zeroed))
    assert torch.equal(out.log_probs, base.log_probs)
    assert torch.equal(out.lm_loss, base.lm_loss)
    scored = out.target_mask
    assert (out.energies != base.energies)[scored].all()
    assert (out.negative_energies != base.negative_energies)[scored[:, None].expand(-1, 2, -1)].all()


def test_without_effect_the_candidate_stream_repeats_the_true_one():
    """With B = 0 the true tokens' energies come from the candidate stream and equal those of a model without adapter."""
    ids, negatives, inputs = tokens(2, 7), tokens(2, 2, 7, seed=1), layout_inputs("left", 7)
    plain = tiny_monarc("llama")
    adapted = tiny_monarc("llama", energy_adapter_rank=4)
    adapted.load_state_dict(plain.state_dict(), strict=False)
    for delta in adapted.energy_adapter.values():
        torch.nn.init.zeros_(delta.up.weight)
    out, expected = (each(input_ids=ids, negatives=negatives, labels=ids, **inputs) for each in (adapted, plain))
    assert_close(
        (out.energies, out.negative_energies), (expected.energies, expected.negative_energies), atol=1e-10, rtol=0
    )


def test_a_copy_of_the_model_has_its_own_adapter():
    ids = tokens(2, 7)
    model = tiny_monarc(energy_adapter_rank=2)
    before = model(input_ids=ids).energies
    clone = copy.deepcopy(model)
    assert torch.equal(clone(input_ids=ids).energies, before)
    for delta in clone.energy_adapter.values():
        delta.up.weight.data.zero_()
    assert torch.equal(model(input_ids=ids).energies, before)
    assert not torch.equal(clone(input_ids=ids).energies, before)


def test_a_frozen_lm_trains_the_energy_alone():
    ids = tokens(2, 7)
    model = tiny_monarc(
        text={"attention_dropout": 0.5, "hidden_dropout": 0.5}, energy_adapter_rank=2, freeze_lm=True
    ).train()
    assert not model.lm.training  # dropout would disturb the frozen model
    out = model(input_ids=ids, labels=ids)
    found = gradients(model, out.loss)
    own = {id(parameter) for parameter in model.energy_parameters()}
    assert found.keys() == {name for name, parameter in model.named_parameters() if id(parameter) in own}
    assert all(gradient.abs().max() > 0 for gradient in found.values())
    assert_close(out.lm_loss, model.eval()(input_ids=ids, labels=ids).lm_loss)


def test_targets_select_layers_by_name():
    model = tiny_monarc("llama", energy_adapter_rank=2, energy_adapter_targets=["q_proj", "v_proj"])
    assert sorted(model.energy_adapter) == [
        f"layers_{i}_self_attn_{name}" for i in range(2) for name in ("q_proj", "v_proj")
    ]
    assert len(tiny_monarc("llama", energy_adapter_rank=2).energy_adapter) == 2 * 7
    assert len(tiny_monarc("gpt2", energy_adapter_rank=2).energy_adapter) == 2 * 4
    with pytest.raises(ValueError, match=r"energy_adapter_targets \['query'\] match no linear layer .*q_proj"):
        tiny_monarc("llama", energy_adapter_rank=2, energy_adapter_targets=["query"])


def test_a_fresh_adapter_has_no_effect_and_can_learn():
    torch.manual_seed(0)
    lm = tiny_monarc("qwen2").lm
    model = MonArcForCausalLM.from_causal_lm(lm, energy_adapter_rank=2)
    assert all(torch.count_nonzero(delta.up.weight) == 0 for delta in model.energy_adapter.values())
    assert all(delta.down.weight.std() > 0.05 for delta in model.energy_adapter.values())
    assert text_config("qwen2")["vocab_size"] == model.config.text_config.vocab_size
    assert scatter(model).energy_parameters()


def test_a_frozen_lm_is_frozen_again_after_loading(tmp_path):
    tiny_monarc(energy_adapter_rank=2, freeze_lm=True).save_pretrained(tmp_path)
    loaded = MonArcForCausalLM.from_pretrained(tmp_path)
    assert not any(parameter.requires_grad for parameter in loaded.lm.parameters())
    assert all(parameter.requires_grad for parameter in loaded.energy_parameters())
