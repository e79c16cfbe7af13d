"""What peft_config is refused for, and that a refusal leaves the model as it was."""

import peft
import pytest
import torch

from hf_elm.trainers.peft_adapters import with_adapters
from tests.adapters.adapter_round_trip import lora
from tests.trainers.tiny_training import tiny_model


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning"
)  # peft asks for the old name


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        (lora(["q_proj", "v_porj"]), ValueError, r'"v_porj" matches no module .* linear layers are \[.*"?v_proj'),
        (lora(r".*attention\..*"), ValueError, r'"\.\*attention\\\.\.\*" matches no module of MonArcForCausalLM'),
        (lora(["token_proj"], modules_to_save=["energy_head"]), ValueError, r"without those in modules_to_save=\['energy_head'\]"),
        (lora(["q_proj"], modules_to_save=["head"]), ValueError, r'"head", which is no module .*energy_head'),
        (lora(None), ValueError, 'target_modules is None; give "all-linear"'),
        (lora([], modules_to_save=[]), ValueError, "would train nothing"),
        (peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), TypeError, "got PromptTuningConfig"),
        ({"r": 2}, TypeError, "got dict"),
    ],
    ids=["misspelt name", "regex", "inside what is saved whole", "saved", "none", "nothing", "prompt", "dict"],
)  # fmt: skip
def test_refusals(config, kind, message):
    model = tiny_model()
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(kind, match=message):
        with_adapters(model, config, ["energy_head"])
    assert [name for name, _ in model.named_parameters()] == names


@pytest.mark.parametrize(
    ("freeze_lm", "adapts_lm", "targets", "message"),
    [
        (True, False, ["q_proj"], r"would train 4 weights of the LM, lm\.model\.layers\.0\.self_attn\.q_proj\.lora_A"),
        (True, False, "all-linear", "freeze_lm=True"),
        (False, True, [], "trains none of the LM's weights"),
        (False, True, ["token_proj"], "trains none of the LM's weights"),
    ],
)
def test_contradictory_freezing_leaves_the_model_as_it_was(freeze_lm, adapts_lm, targets, message):
    model = tiny_model(freeze_lm=freeze_lm).eval()
    state, ids = model.state_dict(), torch.randint(2, 64, (2, 9))
    with torch.no_grad():
        before = model(input_ids=ids)
    with pytest.raises(ValueError, match=message):
        with_adapters(model, lora(targets), ["energy_head"], adapts_lm=adapts_lm)
    after = model.state_dict()
    assert list(after) == list(state)
    with torch.no_grad():
        again = model.eval()(input_ids=ids)
    assert torch.equal(again.logits, before.logits)
    assert torch.equal(again.energies, before.energies)


def test_all_linear_leaves_the_output_embedding_and_what_is_trained_whole_alone():
    model = tiny_model()
    with_adapters(model, lora("all-linear"), ["energy_head"])
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    assert {name.rsplit(".", 1)[-1] for name in adapted} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert all(name.startswith("lm.model.layers.") for name in adapted)
    assert any(name.startswith("energy_head.modules_to_save.") for name, _ in model.named_parameters())


def test_the_callers_configuration_is_left_alone():
    config = lora([])
    with_adapters(tiny_model(), config, ["energy_head"])
    assert (config.modules_to_save, config.task_type) == (None, None)
    assert not config.target_modules
