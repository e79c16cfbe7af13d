"""A saved folder stands alone: a fresh interpreter without hf_elm loads it, gets the same numbers, generates, saves it again."""

import json
import os
import subprocess
import sys

import pytest
import torch

from hf_elm.hub_folder import check_hub_folder
from hf_elm.modeling.nano_ebm import NanoEBMForRefinement
from hf_elm.trainers.tokenization import build_tokenizer
from tests.modeling.nano_ebm.tiny_nano_ebm import TEXT_CONFIG, tiny_nano_ebm, tokens


FRESH_INTERPRETER = """
import os, shutil, sys

class Block:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "hf_elm":
            raise ImportError("exported code imports hf_elm")

sys.meta_path.insert(0, Block())
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

torch.set_num_threads(1)
root = sys.argv[1]
ids = torch.load(os.path.join(root, "ids.pt"))

def numbers(model):
    with torch.no_grad():
        out = model(ids)
        greedy = model.generate(ids, do_sample=False, max_new_tokens=4, eos_token_id=None)
    return {"logits": out.logits, "energies": out.energies, "greedy": greedy}

for name in sorted(os.listdir(root)):
    folder = os.path.join(root, name)
    if not os.path.isdir(folder):
        continue
    assert type(AutoConfig.from_pretrained(folder, trust_remote_code=True)).__name__ == "NanoEBMConfig"
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(AutoModel.from_pretrained(folder, trust_remote_code=True)) is type(model)
    results = {"first": numbers(model)}
    again = os.path.join(root, name + "_again")
    model.save_pretrained(again)
    shutil.rmtree(folder)
    results["again"] = numbers(AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True))
    torch.save(results, os.path.join(root, name + ".pt"))
assert not [name for name in sys.modules if name.split(".")[0] == "hf_elm"]
"""

MODELS = {
    "default": {},
    "chains": {"use_contrastive": True, "contrastive_type": "fast_pcd", "n_persistent": 8, "position_type": "rope"},
    "language_model": {"text_config": TEXT_CONFIG, "freeze_lm": True},
    "tied": {"tie_word_embeddings": True, "norm_type": "rmsnorm", "use_soft_tokens": True},
}


def numbers(model, ids):
    with torch.no_grad():
        out = model(ids)
        greedy = model.generate(ids, do_sample=False, max_new_tokens=4, eos_token_id=None)
    return {"logits": out.logits, "energies": out.energies, "greedy": greedy}


@pytest.fixture(scope="module")
def round_trip(tmp_path_factory):
    """(numbers here, numbers in the fresh interpreter, saved folder) by name; one interpreter for all of them."""
    root, ids = tmp_path_factory.mktemp("saved"), tokens(2, 9)
    torch.save(ids, root / "ids.pt")
    expected = {}
    for name, fields in MODELS.items():
        model = tiny_nano_ebm(dtype=torch.float32, **fields)
        model.save_pretrained(root / name)
        expected[name] = numbers(model, ids)
    env = os.environ | {"HF_MODULES_CACHE": str(root.parent / "modules"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", FRESH_INTERPRETER, str(root)]
    result = subprocess.run(command, cwd=root.parent, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return {name: (expected[name], torch.load(root / f"{name}.pt"), root / f"{name}_again") for name in MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_a_fresh_interpreter_gives_the_same_numbers_twice(round_trip, name):
    expected, found, _ = round_trip[name]
    for stage in ("first", "again"):
        for key, value in expected.items():
            assert torch.equal(found[stage][key], value), (stage, key)


@pytest.mark.parametrize("name", MODELS)
def test_the_saved_config_is_complete_and_clean(round_trip, name):
    folder = round_trip[name][2]
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_nano_ebm.NanoEBMConfig",
        "AutoModel": "modeling_nano_ebm.NanoEBMForRefinement",
        "AutoModelForCausalLM": "modeling_nano_ebm.NanoEBMForRefinement",
    }
    for field, value in MODELS[name].items():
        if field != "text_config":
            assert config[field] == value
    assert not [path for path in folder.iterdir() if path.name.startswith("convert_")]
    assert "/tmp" not in (folder / "config.json").read_text()


def test_the_hub_folder_check_accepts_it(tmp_path):
    model = tiny_nano_ebm(dtype=torch.float32, vocab_size=258)
    model.save_pretrained(tmp_path)
    build_tokenizer("byte").save_pretrained(tmp_path)
    check_hub_folder(tmp_path, model)


def test_missing_energy_weights_are_initialised(tmp_path):
    """A folder with the trunk alone: the rest starts as it should, not as memory was."""
    model = tiny_nano_ebm(dtype=torch.float32)
    state = {key: value for key, value in model.state_dict().items() if not key.startswith(("energy.", "step_sizes."))}
    model.save_pretrained(tmp_path, state_dict=state)
    again = NanoEBMForRefinement.from_pretrained(tmp_path)
    assert all(parameter.isfinite().all() for parameter in again.parameters())
    assert again.step_sizes().tolist() == pytest.approx([0.97] * 2, abs=1e-6)
    assert 0.03 < again.energy.unit_out.weight.std() < 0.07
    assert torch.count_nonzero(again.energy.unit_in.bias) == 0


def test_step_sizes_start_where_they_should_and_stay_in_range():
    for fields, expected in (
        ({"think_lr": 0.3}, 0.3),
        ({"think_lr": 1.0}, 1.0),
        ({"think_lr": 7.0, "geometry": "logits"}, 7.0),
    ):
        model = tiny_nano_ebm(dtype=torch.float32, **fields)
        assert model.step_sizes().tolist() == pytest.approx([expected] * 2, rel=1e-6)
    with torch.no_grad():
        model = tiny_nano_ebm()
        model.step_sizes.raw.fill_(50.0)
    assert (model.step_sizes() <= 1).all()
    fixed = tiny_nano_ebm(think_lr_learnable=False)
    assert not fixed.step_sizes.raw.requires_grad


def test_a_corrupt_folder_is_an_error(tmp_path):
    tiny_nano_ebm().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(Exception, match=r"(?i)safetensor|header|incomplete|metadata"):
        NanoEBMForRefinement.from_pretrained(tmp_path)
