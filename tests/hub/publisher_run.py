"""Pushes models, adapters and a run with hf_elm at hand. Run by test_round_trips.py: ``publisher_run.py SCRATCH``."""

import contextlib
import io
import json
import sys
from pathlib import Path

import torch


torch.set_num_threads(1)

from huggingface_hub import HfApi  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM  # noqa: E402

from hf_elm.command_line import main  # noqa: E402
from hf_elm.run_folder import dump_recipe, write_json  # noqa: E402
from hf_elm.saved_models import load_checkpoint  # noqa: E402
from tests.hub.hub_models import FAMILIES, make_model, make_tokenizer, make_trainer, outputs  # noqa: E402


SCRATCH = Path(sys.argv[1])
API = HfApi()
RESULTS: dict = {"revisions": {}}
ADAPTERS = {
    "monarc": {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["energy_head"], "task_type": "CAUSAL_LM"},
    "nano_ebm": {"target_modules": ["qkv", "unit_in"], "task_type": "CAUSAL_LM"},
    "m2_bert": {"target_modules": ["in_proj", "out_proj"]},
}


def expect(name, model):
    save_file(outputs(model), SCRATCH / f"{name}.safetensors")


def push_twice(family):
    """Two pushes of `model.push_to_hub`: v1 is tagged and has a branch, main is v2."""
    repo_id = f"user/{family}"
    first, second = make_model(family, seed=1), make_model(family, seed=2)
    first.push_to_hub(repo_id)
    make_tokenizer(family).push_to_hub(repo_id)
    sha = API.model_info(repo_id).sha
    API.create_tag(repo_id, tag="v1")
    API.create_branch(repo_id, branch="old")
    second.push_to_hub(repo_id)
    expect(f"{family}-v1", first)
    expect(f"{family}-v2", second)
    RESULTS["revisions"][family] = sha


def push_adapter(family):
    """LoRA on the trunk (and of MonArc the energy head in full) for the model that is on the hub."""
    auto = AutoModelForMaskedLM if family == "m2_bert" else AutoModelForCausalLM
    adapted = get_peft_model(auto.from_pretrained(f"user/{family}"), LoraConfig(**ADAPTERS[family])).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    adapted.push_to_hub(f"user/{family}-adapter")
    expect(f"{family}-adapter", adapted)


def publish_a_run():
    """`hf-elm publish` of a folder as a run leaves it, from the command line."""
    folder = SCRATCH / "run"
    model = make_model("monarc", seed=4)
    model.save_pretrained(folder)
    make_tokenizer("monarc").save_pretrained(folder)
    recipe = {
        "family": "monarc",
        "seed": 0,
        "data": {"corpus": "user/corpus", "sequence_length": 32},
        "train": {"max_steps": 2},
    }
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    write_json(
        folder / "likelihood.json",
        {"method": "exact", "lm_nll": 4.5, "elm_nll": 4.4, "vocab_size": 258, "num_tokens": 9},
    )
    torch.save({"a": 1}, folder / "training_args.bin")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "optimizer.pt").write_bytes(b"pickle")
    (folder / "metrics.jsonl").write_text("")
    expect("published", model)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = main(
            ["publish", str(folder), "user/published", "--private", "--message", "first", "license=apache-2.0"]
        )
    RESULTS["publish"] = {"status": status, "printed": printed.getvalue()}


def publish_an_adapter():
    """`hf-elm publish` of an adapter whose base is a folder here and a repository there; then our own commands on its id."""
    base, folder = SCRATCH / "base", SCRATCH / "lora"
    make_model("monarc", seed=2).save_pretrained(base)
    make_tokenizer("monarc").save_pretrained(base)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**ADAPTERS["monarc"])).eval()
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    adapted.save_pretrained(folder)
    (folder / "optimizer.pt").write_bytes(b"pickle")
    expect("published-adapter", adapted)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = main(["publish", str(folder), "user/published-adapter", "base=user/monarc", "license=mit"])
        merged = main(["publish", str(folder), "user/merged", "merge=true"])
    expect("merged", adapted)
    model, tokenizer = load_checkpoint("user/published-adapter")
    expected = outputs(adapted)
    difference = max((value - expected[name]).abs().max().item() for name, value in outputs(model).items())
    RESULTS["adapter"] = {"status": [status, merged], "printed": printed.getvalue(), "difference": difference}
    RESULTS["adapter"] |= {"tokens": tokenizer("abc")["input_ids"]}


def train(family, strategy):
    """A trainer that pushes, with evaluation of nothing: its card and its files."""
    name = f"{family}-{strategy}"
    trainer = make_trainer(family, SCRATCH / name, f"user/{name}", strategy)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
        trainer.push_to_hub(license="mit", tags=["mine"])
    expect(f"trained-{name}", trainer.model.eval())


for each in FAMILIES:
    push_twice(each)
    push_adapter(each)
publish_a_run()
publish_an_adapter()
for pair in sys.argv[2:]:
    train(*pair.split(":"))
print(json.dumps(RESULTS))  # noqa: T201
