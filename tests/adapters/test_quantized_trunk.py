"""A quantised language model inside a full-precision energy: int8 weights by torchao where it is installed, else a stand-in."""

import importlib.util

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import hf_elm.adapter_folders
import hf_elm.training_run
from hf_elm.command_line import main
from hf_elm.modeling.monarc import MonArcForCausalLM
from hf_elm.trainers.residual_energy_trainer import ResidualEnergyTrainer
from hf_elm.trainers.tokenization import build_tokenizer
from tests.adapters.adapter_round_trip import lora
from tests.modeling.monarc.tiny_monarc import tokens
from tests.trainers.tiny_training import TINY_LM, quiet_config, ragged_rows


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning"
)  # peft asks for the old name


class Int8Linear(nn.Module):
    """What quantised layers have in common: int8 weights that take no gradient, a floating-point result."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.to(x.dtype) * self.scale).t()


def tiny_lm():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**TINY_LM)).eval()


def stand_in_lm():
    lm = tiny_lm()
    for module in list(lm.model.layers.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))
    return lm


def check_energy_learns(model, quantized_logits, tmp_path):
    """The head is full precision and learns, the LM inside gives what the quantised LM gives, before and after."""
    ids = tokens(2, 11)
    assert all(p.dtype == torch.float32 for p in model.energy_head.parameters())
    assert torch.equal(model(input_ids=ids).logits, quantized_logits)
    trainer = ResidualEnergyTrainer(model, quiet_config(tmp_path), train_dataset=ragged_rows(12), peft_config=lora([]))
    trainer.train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith("energy_head.modules_to_save.") for name in trained)
    with torch.no_grad():
        out = trainer.model.eval()(input_ids=ids)
    assert torch.equal(out.logits, quantized_logits)
    assert out.energies.abs().max() > 1e-3
    trainer.save_model(str(tmp_path / "adapter"))
    saved = peft.load_peft_weights(str(tmp_path / "adapter"), device="cpu")
    assert all("energy_head" in name and value.dtype == torch.float32 for name, value in saved.items())
    return out


def test_energy_on_int8_weights(tmp_path):
    lm, ids = stand_in_lm(), tokens(2, 11)
    with torch.no_grad():
        quantized = lm(input_ids=ids).logits
        assert 1e-5 < (quantized - tiny_lm()(input_ids=ids).logits).abs().max() < 0.1
    model = MonArcForCausalLM.from_causal_lm(lm, freeze_lm=True)
    out = check_energy_learns(model, quantized, tmp_path)
    again = MonArcForCausalLM.from_causal_lm(stand_in_lm(), freeze_lm=True)
    again.energy_head.load_state_dict(model.energy_head.original_module.state_dict())
    loaded = peft.PeftModel.from_pretrained(again, tmp_path / "adapter").eval()
    with torch.no_grad():
        found = loaded(input_ids=ids)
    assert torch.equal(found.energies, out.energies)
    assert torch.equal(found.logits, out.logits)


def test_energy_adapter_reaches_only_layers_that_are_linear(tmp_path):
    """Low-rank weights beside int8 layers of another class: refused by name, not passed over."""
    with pytest.raises(ValueError, match="energy_adapter_targets"):
        MonArcForCausalLM.from_causal_lm(stand_in_lm(), energy_adapter_rank=2, energy_adapter_targets=["q_proj"])


@pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason='torchao is not installed: pip install "hf_elm[quant]"'
)
def test_torchao_int8(tmp_path):
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    tiny_lm().save_pretrained(tmp_path / "lm")
    ids, config = tokens(2, 11), TorchAoConfig(Int8WeightOnlyConfig())
    with torch.no_grad():
        quantized = AutoModelForCausalLM.from_pretrained(tmp_path / "lm", quantization_config=config)(
            input_ids=ids
        ).logits
    options = {"quantization_config": config, "freeze_lm": True}
    model = MonArcForCausalLM.from_causal_lm(str(tmp_path / "lm"), **options).eval()
    out = check_energy_learns(model, quantized, tmp_path)
    again = MonArcForCausalLM.from_causal_lm(str(tmp_path / "lm"), **options)
    again.energy_head.load_state_dict(model.energy_head.original_module.state_dict())
    loaded = peft.PeftModel.from_pretrained(again, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert_close(loaded(input_ids=ids).energies, out.energies, atol=1e-5, rtol=1e-5)


def quantized_run(tmp_path, kind):
    tokenizer = build_tokenizer("byte")
    torch.manual_seed(0)
    lm = LlamaForCausalLM(LlamaConfig(**{**TINY_LM, "vocab_size": len(tokenizer)}))
    lm.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    (tmp_path / "text.txt").write_text("abc def ghi jkl. " * 60)
    (tmp_path / "more.txt").write_text("jkl ghi def abc. " * 60)
    return [
        "adapt", "monarc_adapt_joint", f"model.base={tmp_path / 'lm'}", f"data.corpus={tmp_path}/*.txt", "data.sequence_length=32",
        "data.held_out_fraction=0.5", f"output_dir={tmp_path / 'out'}", f"model.quantization={kind}", "train.max_steps=2",
        "train.per_device_train_batch_size=2", "train.use_cpu=true", "train.disable_tqdm=true", "train.warmup_steps=0",
        "evaluate.max_tokens=16", "evaluate.progress=false",
    ]  # fmt: skip


def test_command_line_needs_an_adapter_and_the_package(tmp_path, capsys):
    arguments = quantized_run(tmp_path, "8bit")
    assert main(arguments) == 2
    assert "an adapter to train beside them" in capsys.readouterr().err
    assert main([*quantized_run(tmp_path, "2bit"), "peft.target_modules=[]"]) == 2
    assert 'model.quantization must be one of int8, 8bit, 4bit, got "2bit"' in capsys.readouterr().err
    if importlib.util.find_spec("bitsandbytes") is None:
        assert main([*arguments, "peft.target_modules=[]"]) == 2
        assert 'needs the package bitsandbytes: pip install "hf_elm[quant]"' in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["stand-in", "int8"])
def test_base_is_saved_in_full_precision(kind, tmp_path, monkeypatch):
    """The adapter of a quantised run is of a base whose LM is the one that was given, and whose energy is the one adapted."""
    if kind == "int8":
        pytest.importorskip("torchao")
    else:
        monkeypatch.setattr(hf_elm.training_run, "quantization_config", lambda kind: None)
        monkeypatch.setattr(hf_elm.adapter_folders, "is_quantized", lambda model: True)
    arguments = quantized_run(tmp_path, "int8")
    assert main([*arguments, "peft.target_modules=[]", "train.energy_learning_rate=0.1"]) == 0
    base, lm = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("out/base", "lm"))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(base.lm.parameters(), lm.parameters(), strict=True))
    adapted = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.randint(97, 123, (2, 11))
    with torch.no_grad():
        before, after = base.eval()(input_ids=ids), adapted.eval()(input_ids=ids)
    assert torch.equal(before.logits, after.logits)
    assert not before.energies.any()
    assert after.energies.any()
