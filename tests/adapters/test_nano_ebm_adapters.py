"""PEFT adapters of nanoEBM: refinement terms, inside them, trunk; an own trunk and an attached language model."""

import peft
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hf_elm.modeling.nano_ebm import NanoEBMConfig, NanoEBMForRefinement
from hf_elm.modeling.nano_ebm.free_energy import effective_weight
from hf_elm.modeling.nano_ebm.modeling_nano_ebm import attach_refinement
from hf_elm.trainers.refinement_config import RefinementConfig
from hf_elm.trainers.refinement_trainer import RefinementTrainer
from tests.adapters.adapter_round_trip import (
    MERGED,
    check_resume,
    check_round_trip,
    check_trained,
    lora,
    weights,
    with_base,
)
from tests.modeling.nano_ebm.tiny_nano_ebm import SIZES, TEXT_CONFIG, scatter, tokens
from tests.trainers.tiny_training import ragged_rows


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning"
)  # peft asks for the old name
KEYS = ("s1_logits", "logits", "energies")
REFINEMENT = ("energy.modules_to_save.", "step_sizes.modules_to_save.")
ADAPTERS = {  # name -> (target_modules, other fields, how the names of trained weights begin, what stays as it is)
    "refinement": ([], {}, REFINEMENT, ("s1_logits",)),
    "inside the energy": (
        ["unit_in", "unit_out", "memory_value"], {}, ("energy.", "step_sizes.modules_to_save."), ("s1_logits",),
    ),
    "trunk and refinement": ("TRUNK", {}, ("trunk.", "lm.", *REFINEMENT), ()),
    "readout alone": ("READOUT", {"modules_to_save": []}, ("energy_head.", "lm.lm_head."), ()),
}  # fmt: skip
TRUNKS = {
    "own": {"TRUNK": ["qkv", "down"], "READOUT": ["energy_head"]},
    "attached": {"TRUNK": ["q_proj", "down_proj"], "READOUT": ["lm_head"]},
}


def base(trunk, folder, freeze_lm=False, **fields):
    torch.manual_seed(0)
    fields = {"think_lr_learnable": True, **fields}
    if trunk == "own":
        model = NanoEBMForRefinement(NanoEBMConfig(**SIZES, **fields))
    else:
        lm = LlamaForCausalLM(LlamaConfig(**TEXT_CONFIG))
        model = attach_refinement(lm, freeze_lm=freeze_lm, **fields)
    return with_base(scatter(model, 0.1), folder)


def quiet(folder, **fields):
    defaults = {
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 2e-2,
        "lr_scheduler_type": "constant",
    }
    defaults |= {"train_sampling_strategy": "sequential", "logging_steps": 1, "save_strategy": "no", "use_cpu": True}
    defaults |= {"disable_tqdm": True, "dataloader_pin_memory": False, "optim": "adamw_torch", "warmup_steps": 0}
    return RefinementConfig(output_dir=str(folder), **(defaults | fields))


def rows(count):
    return ragged_rows(count).remove_columns("negatives")


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_round_trip(trunk, adapter, tmp_path):
    targets, fields, prefixes, unchanged = ADAPTERS[adapter]
    model = base(trunk, tmp_path / "base")
    before = weights(model)
    config = lora(TRUNKS[trunk].get(targets, targets) if isinstance(targets, str) else targets, **fields)
    trainer = RefinementTrainer(model, quiet(tmp_path), train_dataset=rows(12), peft_config=config)
    trainer.train()
    check_trained(trainer, before, lambda name: name.startswith(prefixes))
    auto = (peft.AutoPeftModelForCausalLM, AutoModelForCausalLM)
    folders = (tmp_path / "base", tmp_path / "adapter")
    merged = check_round_trip(trainer, *folders, tokens(2, 11), KEYS, auto, unchanged)
    wrapped = auto[0].from_pretrained(tmp_path / "adapter").eval()
    prompt = tokens(2, 5, seed=3)
    greedy = [
        model.generate(input_ids=prompt, do_sample=False, max_new_tokens=5) for model in (wrapped, merged.eval())
    ]
    assert torch.equal(*greedy)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_frozen_step_sizes_stay_frozen(trunk, tmp_path):
    model = base(trunk, tmp_path / "base", think_lr_learnable=False)
    trainer = RefinementTrainer(model, quiet(tmp_path), train_dataset=rows(4), peft_config=lora([]))
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"energy"}
    assert trainer.refined_model is model


def test_frozen_language_model_is_not_adapted(tmp_path):
    model = base("attached", tmp_path / "base", freeze_lm=True)
    with pytest.raises(
        ValueError, match=r"freeze_lm=True, but peft_config would train 4 weights of the LM, lm\.model"
    ):
        RefinementTrainer(model, quiet(tmp_path), peft_config=lora(["q_proj"]))
    assert not [name for name, _ in model.named_parameters() if "lora_" in name]
    RefinementTrainer(model, quiet(tmp_path), peft_config=lora([]))


def test_resumed_adapters_with_stored_chains(tmp_path):
    contrastive = {"use_contrastive": True, "contrastive_type": "fast_pcd", "n_persistent": 16, "contrastive_k": 1}
    base("own", tmp_path / "base", **contrastive)

    def make_trainer(folder, **arguments):
        model = NanoEBMForRefinement.from_pretrained(tmp_path / "base")
        torch.manual_seed(1)
        return RefinementTrainer(model, quiet(folder, **arguments), train_dataset=rows(12), peft_config=lora(["qkv"]))

    check_resume(make_trainer, tmp_path)
    state = torch.load(tmp_path / "parts" / "checkpoint-2" / "rng_state.pth", weights_only=False)
    assert state  # the checkpoint is the one that was resumed from
    saved = peft.load_peft_weights(str(tmp_path / "parts" / "checkpoint-2"))
    assert saved["base_model.model.chains.displacement"].any()


@pytest.mark.parametrize("bias", [False, True])
def test_effective_weight_is_the_matrix_that_the_layer_applies(bias):
    torch.manual_seed(0)
    linear = torch.nn.Linear(7, 5, bias=bias)
    assert effective_weight(linear) is linear.weight
    model = peft.get_peft_model(torch.nn.Sequential(linear), lora(["0"], init_lora_weights=False))
    layer, x = model.base_model.model[0], torch.randn(3, 7)
    product = x @ effective_weight(layer).t() + (layer.bias if bias else 0)
    assert_close(product, layer(x), atol=MERGED, rtol=MERGED)
    effective_weight(layer).sum().backward()
    assert all(p.grad.any() for name, p in model.named_parameters() if "lora_" in name)
    with model.disable_adapter():
        assert_close(effective_weight(layer), linear.weight, atol=1e-6, rtol=1e-6)  # the bias is added and taken off
