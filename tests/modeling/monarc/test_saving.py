"""A saved folder stands alone: a fresh interpreter without hf_elm loads it, gets the same numbers, generates, saves it again."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, GenerationConfig

from hf_elm.modeling.monarc import MonArcConfig, MonArcForCausalLM
from tests.modeling.monarc.tiny_monarc import scatter, text_config, tokens


FRESH_INTERPRETER = """
import json, os, shutil, sys

class Block:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "hf_elm":
            raise ImportError("exported code imports hf_elm")

sys.meta_path.insert(0, Block())
import torch
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

torch.set_num_threads(1)
root = sys.argv[1]
inputs = torch.load(os.path.join(root, "inputs.pt"))

def numbers(model):
    torch.manual_seed(0)
    with torch.no_grad():
        out = model(**inputs)
        sampled = model.generate(inputs["input_ids"], do_sample=True, max_new_tokens=4)
    return {"logits": out.logits, "energies": out.energies, "sampled": sampled}

for name in sorted(os.listdir(root)):
    folder = os.path.join(root, name)
    if not os.path.isdir(folder):
        continue
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert type(config).__name__ == "MonArcConfig", type(config)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(AutoModel.from_pretrained(folder, trust_remote_code=True)) is type(model)
    results = {"first": numbers(model)}
    again = os.path.join(root, name + "_again")
    model.save_pretrained(again)
    shutil.rmtree(folder)
    reloaded = AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True)
    AutoModel.from_pretrained(again, trust_remote_code=True)
    results["again"] = numbers(reloaded)
    results["tied"] = reloaded.get_input_embeddings().weight is reloaded.get_output_embeddings().weight
    results["num_candidates"] = reloaded.generation_config.num_candidates
    torch.save(results, os.path.join(root, name + ".pt"))
assert not [name for name in sys.modules if name.split(".")[0] == "hf_elm"]
"""

MODELS = {
    "adapter": ("stablelm", {}, {"energy_adapter_rank": 2, "energy_bound": 4.0}),
    "tied": ("llama", {"tie_word_embeddings": True}, {"two_stream_backend": "sdpa"}),
    "linear": ("gpt2", {}, {"energy_head": "linear", "mask_segment_starts": False}),
}


def small_model(kind, text, fields, seed=0):
    torch.manual_seed(seed)
    model = MonArcForCausalLM(MonArcConfig(text_config=text_config(kind, **text), **fields))
    return scatter(model).eval()


@pytest.fixture(scope="module")
def round_trip(tmp_path_factory):
    """(model's numbers here, numbers in the fresh interpreter) by name; one interpreter for all of them."""
    root = tmp_path_factory.mktemp("saved")
    inputs = {"input_ids": tokens(2, 9)}
    torch.save(inputs, root / "inputs.pt")
    expected = {}
    for name, (kind, text, fields) in MODELS.items():
        model = small_model(kind, text, fields)
        if name == "tied":
            model.generation_config.num_candidates = 3
        model.save_pretrained(root / name)
        torch.manual_seed(0)
        with torch.no_grad():
            out = model(**inputs)
            sampled = model.generate(inputs["input_ids"], do_sample=True, max_new_tokens=4)
        expected[name] = {"logits": out.logits, "energies": out.energies, "sampled": sampled}
    env = os.environ | {"HF_MODULES_CACHE": str(root.parent / "modules"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", FRESH_INTERPRETER, str(root)]
    result = subprocess.run(command, cwd=root.parent, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return {name: (expected[name], torch.load(root / f"{name}.pt"), root / f"{name}_again") for name in MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_a_fresh_interpreter_gives_the_same_numbers_twice(round_trip, name):
    expected, found, _ = round_trip[name]
    assert expected["energies"].abs().max() > 0.1
    for stage in ("first", "again"):
        for key, value in expected.items():
            # the linear head is a matrix-vector product, whose order of summation depends on the weights' alignment in memory
            if (name, key) == ("linear", "energies"):
                assert_close(found[stage][key], value, atol=2e-6, rtol=0)
            else:
                assert torch.equal(found[stage][key], value), (stage, key)


def test_ties_and_generation_defaults_survive(round_trip):
    assert [round_trip[name][1]["tied"] for name in MODELS] == [False, True, True]  # gpt2 ties by default
    assert [round_trip[name][1]["num_candidates"] for name in MODELS] == [8, 3, 8]


@pytest.mark.parametrize("name", MODELS)
def test_the_saved_config_is_complete_and_clean(round_trip, name):
    folder = round_trip[name][2]
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_monarc.MonArcConfig",
        "AutoModel": "modeling_monarc.MonArcForCausalLM",
        "AutoModelForCausalLM": "modeling_monarc.MonArcForCausalLM",
    }
    for field, value in MODELS[name][2].items():
        assert config[field] == value
    assert config["text_config"]["model_type"] == MODELS[name][0]
    assert not [path for path in folder.iterdir() if path.name.startswith("convert_")]
    assert "/tmp" not in (folder / "config.json").read_text()  # no trace of where it was saved


def test_a_plain_causal_lm_on_disk_is_wrapped_as_it_is(tmp_path):
    source = small_model("llama", {"tie_word_embeddings": True}, {}).lm
    source.generation_config = GenerationConfig(eos_token_id=7, do_sample=True, temperature=0.7)
    source.save_pretrained(tmp_path / "plain")
    model = MonArcForCausalLM.from_causal_lm(tmp_path / "plain", energy_adapter_rank=2).eval()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    ids = tokens(2, 9)
    with torch.no_grad():
        out, expected = model(input_ids=ids), plain(input_ids=ids).logits
    assert torch.equal(out.logits, expected)
    assert torch.count_nonzero(out.energies) == 0
    assert (model.generation_config.eos_token_id, model.generation_config.temperature) == (7, 0.7)
    assert model.generation_config.num_candidates == 8
    model.save_pretrained(tmp_path / "wrapped")
    again = MonArcForCausalLM.from_pretrained(tmp_path / "wrapped")
    assert again.generation_config.eos_token_id == 7
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, expected)
    assert again.lm.lm_head.weight is again.lm.model.embed_tokens.weight
    assert str(tmp_path) not in (tmp_path / "wrapped" / "config.json").read_text()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dtype_of_the_folder_is_kept(tmp_path, dtype):
    small_model("qwen2", {}, {}).to(dtype).save_pretrained(tmp_path)
    model = MonArcForCausalLM.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert (
        MonArcForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).energy_head.norm.weight.dtype == torch.float64
    )


def test_a_missing_energy_starts_at_zero(tmp_path):
    """A folder of LM weights alone, under the wrapper's config: the energy is initialised, not left as memory was."""
    model = small_model("stablelm", {}, {"energy_adapter_rank": 2})
    state = {key: value for key, value in model.state_dict().items() if key.startswith("lm.")}
    model.save_pretrained(tmp_path, state_dict=state)
    again = MonArcForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        out = again(input_ids=tokens(2, 9))
    assert torch.count_nonzero(out.energies) == 0
    assert all(parameter.isfinite().all() for parameter in again.parameters())
    assert again.energy_head.token_proj.weight.std() > 0


def test_a_corrupt_folder_is_an_error_that_names_the_file(tmp_path):
    small_model("stablelm", {}, {}).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(Exception, match=r"(?i)safetensor|header|incomplete|metadata"):
        MonArcForCausalLM.from_pretrained(tmp_path)
