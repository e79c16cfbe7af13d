"""Tensor and FSDP plans: their names exist, and transformers' own distributed loading gives the same model in shards."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_elm.modeling.m2_bert import M2BertConfig, M2BertForMaskedLM
from hf_elm.modeling.monarc import MonArcConfig, MonArcForCausalLM
from hf_elm.modeling.nano_ebm import NanoEBMConfig, NanoEBMForRefinement


ROOT = Path(__file__).resolve().parents[2]
VOCAB = 64
LM = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": None,
    "eos_token_id": None,
}


def monarc(**lm):
    torch.manual_seed(0)
    model = MonArcForCausalLM(MonArcConfig(text_config=LM | lm))
    with torch.no_grad():
        for p in model.energy_parameters():
            p.normal_(std=0.3)
    return model.double()


def nano_ebm(**fields):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32}
    return NanoEBMForRefinement(NanoEBMConfig(**({"vocab_size": VOCAB} | sizes | fields))).double()


def m2_bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "filter_order": 8}
    return M2BertForMaskedLM(
        M2BertConfig(vocab_size=VOCAB, max_position_embeddings=32, hidden_dropout_prob=0.0, pad_token_id=0, **sizes)
    ).double()


CASES = {  # name -> (model, how it is loaded in shards)
    "monarc": (monarc, ("fsdp", "tp")),
    "monarc_tied": (lambda: monarc(tie_word_embeddings=True), ("fsdp", "tp")),
    "nano_ebm": (nano_ebm, ("fsdp",)),
    "nano_ebm_around_a_language_model": (lambda: nano_ebm(text_config=dict(LM)), ("fsdp", "tp")),
    "m2_bert": (m2_bert, ("fsdp",)),
}


def batch_of(name):
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(2, VOCAB, (3, 10), generator=generator)
    batch = {"input_ids": input_ids, "labels": input_ids.clone()}
    if name.startswith("monarc"):
        batch["negatives"] = torch.randint(2, VOCAB, (3, 1, 10), generator=generator)
    return batch


def loss_of(model, batch):
    return model.train()(**batch).loss


def gradients(model):
    """Name -> whole gradient, of the parameters that have one."""
    whole = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: (g.full_tensor() if hasattr(g, "full_tensor") else g).clone() for name, g in whole.items()}


@pytest.mark.parametrize("name", CASES)
def test_plans_name_modules_that_exist(name):
    make, kinds = CASES[name]
    model = make()
    names = {re.sub(r"\.\d+(?=\.|$)", ".*", each) for each, _ in model.named_modules()}
    for kind in ("tp", "fsdp"):
        plan = getattr(model, f"{kind}_plan")
        assert bool(plan) == (kind in kinds)
        assert plan.keys() <= names, plan.keys() - names
        head = next(each for each, module in model.named_modules() if module is model.get_output_embeddings())
        assert head not in plan, "its weight is read outside its forward pass"
    assert any(key.endswith(".*") for key in model.fsdp_plan), "layer by layer"


@pytest.mark.parametrize("name", CASES)
def test_classes_not_to_split_exist(name):
    """Accelerate's FSDP shards instances of these classes, and refuses names that the model has no instance of."""
    model = CASES[name][0]()
    assert model._no_split_modules
    assert set(model._no_split_modules) <= {type(module).__name__ for module in model.modules()}


@pytest.mark.multiprocess
def test_models_loaded_in_shards_by_transformers_equal_the_whole_ones(tmp_path):
    """Loss and gradients of two ranks, float64; saving gathers the weights again."""
    expected = {}
    for name, (make, _) in CASES.items():
        model = make()
        model.save_pretrained(tmp_path / name)
        loss = loss_of(model, batch_of(name))
        loss.backward()
        expected[name] = (loss.item(), gradients(model), model.state_dict())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    ranks = subprocess.run(
        [*command, str(Path(__file__).with_name("distributed_loading_run.py")), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=170,
        cwd=tmp_path,
        check=False,
    )
    assert ranks.returncode == 0, ranks.stderr[-3000:]
    results = torch.load(tmp_path / "rank0.pt", weights_only=True)
    for (name, kind), result in results.items():
        loss, grads, weights = expected[name]
        assert abs(result["loss"] - loss) < 1e-6 * abs(loss), (name, kind)
        assert result["gradients"].keys() == grads.keys(), (name, kind)
        for key, gradient in result["gradients"].items():
            torch.testing.assert_close(gradient, grads[key], rtol=1e-5, atol=1e-7, msg=f"{name} {kind} {key}")
        assert result["local"] < 0.9 * sum(value.numel() for value in weights.values()), (name, kind)
        again = type(CASES[name][0]()).from_pretrained(tmp_path / f"{name}-{kind}-again", dtype=torch.float64)
        for key, value in again.state_dict().items():
            torch.testing.assert_close(value, weights[key], rtol=0, atol=0)
