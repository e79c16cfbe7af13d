"""Refinement over an existing language model: at first that model, then more; its weights stay where they were."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

from hf_elm.modeling.nano_ebm import NanoEBMForRefinement, attach_refinement
from tests.modeling.nano_ebm.tiny_nano_ebm import TEXT_CONFIG, VOCAB, tokens


GPT2 = {
    "model_type": "gpt2", "vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
    "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip
CONFIGS = {
    "llama": TEXT_CONFIG,
    "gpt2": GPT2,
    "qwen2": {**TEXT_CONFIG, "model_type": "qwen2", "tie_word_embeddings": True},
    "phi": {**TEXT_CONFIG, "model_type": "phi", "num_key_value_heads": 4},  # an output embedding with a bias
}


def language_model(kind="llama", seed=0, **more):
    torch.manual_seed(seed)
    fields = dict(CONFIGS[kind])
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields, **more))
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return lm.eval()


@pytest.mark.parametrize("kind", CONFIGS)
def test_it_begins_as_the_language_model(kind):
    lm, ids = language_model(kind), tokens(2, 9)
    with torch.no_grad():
        expected = lm(input_ids=ids).logits
    greedy = lm.generate(ids, max_new_tokens=5, do_sample=False)
    model = attach_refinement(lm)
    assert not model.training
    with torch.no_grad():
        out = model(ids, think_steps=3)
    assert_close(out.s1_logits, expected, atol=0, rtol=0)
    assert_close(out.logits.log_softmax(-1), expected.log_softmax(-1), atol=2e-5, rtol=0)
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), greedy)


@pytest.mark.parametrize("kind", ["llama", "phi"])
def test_only_the_energy_learns_and_it_helps(kind):
    lm, ids = language_model(kind), tokens(4, 12)
    before = {name: value.clone() for name, value in lm.state_dict().items()}
    model = attach_refinement(lm).train()
    assert not lm.training
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(30):
        out = model(ids, labels=ids)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in lm.state_dict().items())
    assert out.nll_s2.item() < out.nll_s1.item() - 0.5
    energies = model.eval()(ids).energies
    assert (energies[1:] <= energies[:-1] + 1e-4 * energies.abs().max()).all()  # float32
    moved = [name for name, p in model.energy.named_parameters() if torch.count_nonzero(p.grad)]
    assert len(moved) == len(list(model.energy.named_parameters()))


def test_all_of_it_can_learn():
    model = attach_refinement(language_model(), freeze_lm=False).train()
    ids = tokens(2, 9)
    model(ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.lm.parameters())


def test_a_saved_language_model_and_the_result_round_trip(tmp_path):
    lm, ids = language_model(), tokens(2, 9)
    lm.save_pretrained(tmp_path / "lm")
    model = NanoEBMForRefinement.from_causal_lm(str(tmp_path / "lm"), think_steps=3, think_lr=0.5)
    assert (model.config.think_steps, model.config.vocab_size, model.config.hidden_size) == (3, VOCAB, 32)
    with torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.energy.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        expected = model.eval()(ids)
    model.save_pretrained(tmp_path / "model")
    again = NanoEBMForRefinement.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        found = again(ids)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.energies, expected.energies)
    assert not any(parameter.requires_grad for parameter in again.lm.parameters())
    assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text()


def test_dtype_and_eager_attention_are_kept():
    lm = language_model().to(torch.bfloat16)
    lm.set_attn_implementation("eager")
    model, ids = attach_refinement(lm), tokens(1, 9)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    segments = torch.tensor([[0] * 4 + [1] * 5])
    positions = torch.tensor([[*range(4), *range(5)]])
    with torch.no_grad():
        packed = model(ids, segment_ids=segments, position_ids=positions).logits[:, 4:]
        alone = model(ids[:, 4:]).logits
    assert_close(packed, alone, atol=0.1, rtol=0.05)  # bfloat16


def test_what_cannot_be_refined_is_refused():
    lm = language_model()
    with pytest.raises(TypeError, match=r"think_stepz.*are no fields of NanoEBMConfig"):
        attach_refinement(lm, think_stepz=3)
    with pytest.raises(TypeError, match="needs a transformers causal language model"):
        attach_refinement(lm.model)
    with pytest.raises(TypeError, match="refines already"):
        attach_refinement(attach_refinement(lm))
    torch.manual_seed(0)
    scaled = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "granite", **{k: v for k, v in TEXT_CONFIG.items() if k != "model_type"}, logits_scaling=8.0
        )
    )
    with pytest.raises(ValueError, match="changes its logits after the output embedding"):
        attach_refinement(scaled)
