"""Loads what publisher_run.py pushed, where hf_elm cannot be imported: ``clean_load_run.py SCRATCH NAME=REPO[@REVISION] ...``.

Prints the largest difference of each from what was expected. ``--again`` first: pushes each model to another repository, deletes
the first one, and loads that.
"""

import importlib
import json
import sys
import tempfile
from pathlib import Path


class Block:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "hf_elm":
            raise ImportError("remote code imports hf_elm")


sys.meta_path.insert(0, Block())
sys.path[:] = [path for path in sys.path if not Path(path or ".", "setup.py").is_file()]

import pickle  # noqa: E402

import torch  # noqa: E402


torch.set_num_threads(1)
torch.load = pickle.load = pickle.loads = None  # nothing is unpickled

from huggingface_hub import HfApi  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoConfig, AutoTokenizer  # noqa: E402


SCRATCH = Path(sys.argv[1])
AUTO = {"m2_bert": "AutoModelForMaskedLM"}


def load(repo_id, **options):
    options["trust_remote_code"] = True
    if "adapter" in repo_id:  # its code is its base model's
        auto = AUTO.get(repo_id.removeprefix("user/").removesuffix("-adapter"), "AutoModelForCausalLM")
    else:
        config = AutoConfig.from_pretrained(repo_id, **options)
        auto = AUTO.get(config.model_type, "AutoModelForCausalLM")
        assert AutoTokenizer.from_pretrained(repo_id, **options)("abc")["input_ids"]
    return getattr(importlib.import_module("transformers"), auto).from_pretrained(repo_id, **options).eval()


@torch.no_grad()
def difference(model, name):
    expected = load_file(SCRATCH / f"{name}.safetensors")
    found = model(torch.randint(97, 123, (2, 9), generator=torch.Generator().manual_seed(7)))
    if hasattr(model, "generate") and model.can_generate():
        model.generate(torch.tensor([[97, 98]]), max_new_tokens=2, do_sample=True)
    return max((found[key] - value).abs().max().item() for key, value in expected.items())


def again(name, repo_id):
    """Push the remotely loaded model to another repository, delete the first, load the other with empty caches."""
    model, second = load(repo_id), f"{repo_id}-again"
    model.push_to_hub(second)
    AutoTokenizer.from_pretrained(repo_id, trust_remote_code=True).push_to_hub(second)
    HfApi().delete_repo(repo_id)
    config = HfApi().hf_hub_download(second, "config.json")
    assert "--" not in json.dumps(json.loads(Path(config).read_text())["auto_map"])
    with tempfile.TemporaryDirectory() as empty:
        return difference(load(second, cache_dir=empty), name)


results = {}
for argument in sys.argv[2:]:
    if argument == "--again":
        continue
    name, _, place = argument.partition("=")
    repo_id, _, revision = place.partition("@")
    if "--again" in sys.argv:
        results[argument] = again(name, repo_id)
    else:
        results[argument] = difference(load(repo_id, **({"revision": revision} if revision else {})), name)
assert not [name for name in sys.modules if name.split(".")[0] == "hf_elm"]
print(json.dumps(results))  # noqa: T201
