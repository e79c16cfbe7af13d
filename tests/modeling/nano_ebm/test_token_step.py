"""One token at a time: `TokenStep` gives what the modules give, and stands back where it could not."""

import pytest
import torch
from torch.testing import assert_close

from hf_elm.modeling.nano_ebm import token_step
from hf_elm.modeling.nano_ebm.token_step import TokenStep
from tests.modeling.nano_ebm.tiny_nano_ebm import TEXT_CONFIG, VOCAB, tiny_nano_ebm, tokens


MODELS = {
    "default": {},
    "rope": {"position_type": "rope", "norm_type": "rmsnorm", "use_bias": False},
    "power 1": {"energy_power": 1, "energy_feedback": 1.0},
    "no context": {"energy_context": 0},
    "long context": {"energy_context": 11},
    "units only": {"energy_heads": 0, "tie_word_embeddings": True},
    "memory only": {"energy_units": 0},
    "linear": {"energy_type": "linear", "entropy_weight": 0.5},
    "mixture": {"mixture_stopgrad": False, "geometry": "logits"},
    "temperature": {"softmax_temperature": 2.0, "energy_heads": 2},
}
THINKING = {
    "steps": {"think_steps": 4},
    "system 1": {"use_thinking": False},
    "topk": {"think_topk": 5, "think_max_move": 0.5, "think_tolerance": 1e-3, "think_steps": 5},
    "samples": {"think_samples": 3, "langevin_noise": 0.2, "think_lr": 0.3},
}
OPTIONS = {
    "max_new_tokens": 9, "do_sample": False, "eos_token_id": None, "output_logits": True, "return_dict_in_generate": True,
}  # fmt: skip


def generated(model, ids, **options):
    if "think_samples" in options:
        options["generator"] = torch.Generator().manual_seed(0)
    return model.generate(ids, **OPTIONS, **options)


@pytest.fixture
def served(monkeypatch):
    """How many tokens went through `TokenStep`."""
    count, call = [], TokenStep.__call__
    monkeypatch.setattr(TokenStep, "__call__", lambda self, *inputs: count.append(1) or call(self, *inputs))
    return count


@pytest.mark.parametrize("thinking", THINKING)
@pytest.mark.parametrize("name", MODELS)
def test_it_gives_what_the_modules_give(monkeypatch, served, name, thinking):
    model = tiny_nano_ebm(**MODELS[name])
    for ids in (tokens(1, 1), tokens(3, 7)):  # a first token has no memory
        served.clear()
        found = generated(model, ids, **THINKING[thinking])
        assert len(served) == 8
        with monkeypatch.context() as patched:
            patched.setattr(TokenStep, "serves", staticmethod(lambda model: False))
            expected = generated(model, ids, **THINKING[thinking])
        assert len(served) == 8
        assert torch.equal(found.sequences, expected.sequences)
        for ours, theirs in zip(found.logits, expected.logits, strict=True):
            assert_close(ours, theirs, atol=1e-9, rtol=0)


def test_a_large_vocabulary_has_no_table(monkeypatch, served):
    model, ids = tiny_nano_ebm(), tokens(2, 5)
    expected = generated(model, ids)
    monkeypatch.setattr(token_step, "TABLE_ROWS", VOCAB - 1)
    assert TokenStep(model).value_table is None
    found = generated(model, ids)
    assert len(served) == 16
    assert_close(torch.stack(found.logits), torch.stack(expected.logits), atol=1e-12, rtol=0)


def test_modules_that_are_not_plain_are_called():
    """A hook sees every token; adapters, other language models and training have modules of their own."""
    model, ids, seen = tiny_nano_ebm(), tokens(1, 5), []
    assert TokenStep.serves(model)
    handle = model.trunk.blocks[0].register_forward_hook(lambda *_: seen.append(1))
    assert not TokenStep.serves(model)
    generated(model, ids)
    assert len(seen) == 9
    handle.remove()
    assert TokenStep.serves(model)

    class Adapter(torch.nn.Linear):
        pass

    model.energy.memory_query = Adapter(32, 32).double()
    assert not TokenStep.serves(model)
    assert not TokenStep.serves(tiny_nano_ebm(text_config=TEXT_CONFIG))
    assert not TokenStep.serves(tiny_nano_ebm(use_soft_tokens=True))
    assert not TokenStep.serves(tiny_nano_ebm(dtype=torch.bfloat16))
    assert not TokenStep.serves(tiny_nano_ebm().train())


def test_padding_and_positions_of_ones_own_go_through_the_modules(served):
    model, ids = tiny_nano_ebm(), tokens(2, 5)
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    generated(model, ids, attention_mask=mask)
    generated(model, ids, position_ids=torch.arange(5).expand(2, -1) + 3)
    assert not served


def test_no_weights_are_kept_after_generating():
    model, ids = tiny_nano_ebm(), tokens(1, 5)
    first = generated(model, ids)
    assert model._token_step is None
    with torch.no_grad():
        model.energy.memory_key.weight.mul_(2)
        model.energy_head.weight.mul_(2)
    second = generated(model, ids)
    assert_close(second.logits[0], model(ids).logits[:, -1].float(), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(first.logits[-1], second.logits[-1])
    with pytest.raises(ValueError, match="48 positions"):
        model.generate(ids, max_new_tokens=100)
    assert model._token_step is None


def test_bfloat16_autocast_with_gradient_checkpointing_trains():
    """20 steps on one batch."""
    model = tiny_nano_ebm(dtype=torch.float32, spread=0.02).train()
    model.activation_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids, losses = tokens(4, 12), []
    for _ in range(20):
        with torch.autocast("cpu", torch.bfloat16):
            out = model(ids, labels=ids)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.nll_s2.item())
    assert out.loss.dtype == torch.float32
    assert losses[-1] < 0.7 * losses[0]
