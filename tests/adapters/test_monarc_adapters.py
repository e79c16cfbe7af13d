"""PEFT adapters of MonArc: head, inside the head, trunk and head; llama and stablelm."""

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from hf_elm.hub_folder import run_without_hf_elm
from hf_elm.modeling.monarc import MonArcForCausalLM
from hf_elm.trainers.residual_energy_trainer import ResidualEnergyTrainer
from tests.adapters.adapter_round_trip import (
    MERGED,
    check_resume,
    check_round_trip,
    check_trained,
    lora,
    weights,
    with_base,
)
from tests.modeling.monarc.tiny_monarc import text_config, tokens
from tests.trainers.tiny_training import quiet_config, ragged_rows


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning"
)  # peft asks for the old name
KEYS = ("logits", "energies")
ADAPTERS = {  # name -> (target_modules, other fields, is this weight trained?, does the LM stay as it is?)
    "head": ([], {}, lambda name: name.startswith("energy_head.modules_to_save."), True),
    "inside the head": (r"energy_head\..*_proj", {}, lambda name: name.startswith("energy_head.") and "lora_" in name, True),
    "trunk and head": (
        ["q_proj", "v_proj", "down_proj"],
        {"modules_to_save": ["energy_head"]},
        lambda name: "lora_" in name or name.startswith("energy_head.modules_to_save."),
        False,
    ),
    "trunk, LM head and inside the head": (
        ["o_proj", "lm_head", "token_proj", "previous_proj"], {}, lambda name: "lora_" in name, False,
    ),
}  # fmt: skip


def base(kind, folder, **fields):
    from hf_elm.modeling.monarc import MonArcConfig

    torch.manual_seed(0)
    model = MonArcForCausalLM(MonArcConfig(text_config=text_config(kind), **fields))
    with torch.no_grad():
        for p in model.energy_parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return with_base(model, folder)


def trained(kind, folder, targets, rate=3e-2, rows=12, **fields):
    model = base(kind, folder / "base")
    before = weights(model)
    trainer = ResidualEnergyTrainer(
        model,
        quiet_config(folder, learning_rate=rate),
        train_dataset=ragged_rows(rows),
        peft_config=lora(targets, **fields),
    )
    trainer.train()
    return trainer, before


@pytest.mark.parametrize("kind", ["llama", "stablelm"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_round_trip(kind, adapter, tmp_path):
    targets, fields, expected, lm_unchanged = ADAPTERS[adapter]
    trainer, before = trained(kind, tmp_path, targets, **fields)
    check_trained(trainer, before, expected)
    unchanged = ("logits",) if lm_unchanged else ()
    auto = (peft.AutoPeftModelForCausalLM, AutoModelForCausalLM)
    check_round_trip(trainer, tmp_path / "base", tmp_path / "adapter", tokens(2, 11), KEYS, auto, unchanged)


def test_scores_and_generation_under_the_adapter(tmp_path):
    trainer, _ = trained("llama", tmp_path, ["q_proj", "v_proj"])
    trainer.save_model(str(tmp_path / "adapter"))
    wrapped = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    injected = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    ids, candidates = tokens(2, 9), tokens(2, 3, 9, seed=1)
    expected = wrapped.score_candidates(ids, candidates)
    assert torch.equal(expected.energies, injected.score_candidates(ids, candidates).energies)
    texts = []
    for model in (wrapped, injected):
        torch.manual_seed(3)
        texts.append(model.generate(input_ids=ids, do_sample=True, max_new_tokens=6, num_candidates=4))
    assert torch.equal(*texts)
    merged = wrapped.merge_and_unload()
    scores = merged.score_candidates(ids, candidates)
    assert_close(scores.energies, expected.energies, atol=MERGED, rtol=MERGED)
    assert_close(scores.log_probs, expected.log_probs, atol=MERGED, rtol=MERGED)
    with torch.no_grad():  # a candidate that is the token itself has its energy, adapters in the trunk or not
        out = injected(input_ids=ids)
    own = injected.score_candidates(ids, ids.unsqueeze(1))
    assert_close(own.energies[:, 0], out.energies, atol=MERGED, rtol=MERGED)


@pytest.mark.parametrize("targets", [[], ["q_proj"]], ids=["head", "trunk and head"])
def test_resumed_adapters_are_those_of_the_uninterrupted_run(targets, tmp_path):
    base("llama", tmp_path / "base")

    def make_trainer(folder, **arguments):
        model = MonArcForCausalLM.from_pretrained(tmp_path / "base")
        torch.manual_seed(1)
        rows = ragged_rows(12).remove_columns("negatives")  # they are drawn from the LM as it is then
        return ResidualEnergyTrainer(
            model, quiet_config(folder, **arguments), train_dataset=rows, peft_config=lora(targets, lora_dropout=0.1)
        )

    check_resume(make_trainer, tmp_path)


def test_saved_adapter_learns_further(tmp_path):
    trainer, _ = trained("llama", tmp_path, ["q_proj"])
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", is_trainable=True)
    before = weights(loaded)
    again = ResidualEnergyTrainer(loaded, quiet_config(tmp_path), train_dataset=ragged_rows(4))
    again.train()
    moved = {name for name, value in weights(loaded).items() if not torch.equal(value, before[name])}
    assert moved == {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "modules_to_save" in name for name in moved)
    with pytest.raises(ValueError, match="has PEFT adapters already"):
        ResidualEnergyTrainer(loaded, quiet_config(tmp_path), peft_config=lora(["q_proj"]))


def test_own_rate_of_the_energy_reaches_the_copy_that_learns(tmp_path):
    model = base("llama", tmp_path / "base")
    trainer = ResidualEnergyTrainer(
        model,
        quiet_config(tmp_path, energy_learning_rate=0.0),
        train_dataset=ragged_rows(4),
        peft_config=lora(["q_proj"]),
    )
    before = weights(trainer.model)
    trainer.train()
    moved = {name for name, value in weights(trainer.model).items() if not torch.equal(value, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)


@pytest.mark.slow  # a fresh interpreter imports torch, transformers and peft
def test_adapter_loads_where_hf_elm_is_not_installed(tmp_path):
    """The base's folder brings the code, the adapter's the weights."""
    trainer, _ = trained("llama", tmp_path, ["q_proj"])
    trainer.save_model(str(tmp_path / "adapter"))
    with torch.no_grad():
        out = trainer.model.eval()(input_ids=tokens(2, 11))
    save_file({"input_ids": tokens(2, 11), "logits": out.logits, "energies": out.energies}, tmp_path / "probe")
    code = """
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file

probe = load_file(sys.argv[2])
for auto in (AutoPeftModelForCausalLM, transformers.AutoModelForCausalLM):
    model = auto.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
    with torch.no_grad():
        out = model(input_ids=probe["input_ids"])
    assert torch.equal(out.logits, probe["logits"]) and torch.equal(out.energies, probe["energies"]), auto
print("equal")
"""
    assert run_without_hf_elm(code, tmp_path / "adapter", tmp_path / "probe").split()[-1] == "equal"
