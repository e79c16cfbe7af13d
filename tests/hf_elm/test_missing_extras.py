"""With the base packages alone models load and generate, and every command that needs more says which line installs it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.hub_models import make_model, make_tokenizer


ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import contextlib
import importlib.util
import io
import json
import sys

EXTRAS = {
    "accelerate", "bm25s", "datasets", "evaluate", "gguf", "gradio", "lm_eval", "matplotlib", "peft", "pandas", "PIL", "pyarrow",
    "sentence_transformers", "sklearn", "tensorboard", "torchao", "torchdata", "trackio", "wandb",
}

class Absent:
    def find_spec(self, name, *_):
        if name.split(".")[0] in EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def find_spec(name, package=None, look=importlib.util.find_spec):
    return None if name.split(".")[0] in EXTRAS else look(name, package)

sys.meta_path.insert(0, Absent())
importlib.util.find_spec = find_spec
import torch

torch.set_num_threads(1)
from hf_elm.command_line import main

found = {}
for name, arguments in json.loads(sys.argv[1]).items():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    found[name] = [status, out.getvalue(), err.getvalue()]
loaded = sorted(EXTRAS & {name.split(".")[0] for name in sys.modules})
print(json.dumps([found, loaded]))
"""
NEEDS = {  # arguments after the command -> the extra that the error names
    "train": (["train", "monarc_tiny", "output_dir=out"], "train"),
    "train tracked": (["train", "monarc_tiny", "output_dir=out", "train.report_to=trackio"], "t"),
    "prepare": (["prepare", "output=shards"], "train"),
    "automata": (["automata", "output_dir=automata"], "train"),
    "quickstart": (["quickstart", "output_dir=quickstart"], "train"),
    "eval": (["eval", "checkpoint=monarc", "tasks=library_cloze"], "eval"),
    "plot": (["plot", "energies", "checkpoint=monarc", "output=energies.png"], "plot"),
    "landscape": (["plot", "landscape", "checkpoint=nano_ebm", "prompt=abc", "output=landscape.png"], "plot"),
    "demo": (["demo", "checkpoint=monarc"], "demo"),
    "embed parquet": (["embed", "texts.txt", "checkpoint=m2_bert", "output=out.parquet"], "retrieval"),
    "score parquet": (["score", "texts.txt", "checkpoint=monarc", "output=out.parquet"], "retrieval"),
    "retrieve": (["retrieve", "checkpoint=m2_bert", "task=passkey"], "train"),
    "sentence transformers": (["export", "m2_bert", "st", "--sentence-transformers"], "retrieval"),
}
WORKS = {
    "generate": ["generate", "checkpoint=monarc", "prompt=abc", "max_new_tokens=4", "num_candidates=3"],
    "think": ["generate", "checkpoint=nano_ebm", "prompt=abc", "max_new_tokens=4", "think_steps=2"],
    "choose": [
        "generate",
        "checkpoint=monarc",
        "prompt=abc",
        "max_new_tokens=4",
        "num_samples=3",
        "choose=likelihood",
    ],
    "embed": ["embed", "texts.txt", "checkpoint=m2_bert", "output=vectors.npy", "pool_with_dense=false"],
    "score": ["score", "texts.txt", "checkpoint=monarc", "output=scores.jsonl"],
    "select": ["select", "scores.jsonl", "output=chosen.jsonl", "fraction=0.5"],
    "rerank": ["rerank", "lists.jsonl", "checkpoint=monarc", "output=ranked.jsonl"],
    "env": ["env"],
}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """name -> [status, stdout, stderr] of all commands, in one process that has none of the extras."""
    folder = tmp_path_factory.mktemp("base")
    for family in ("monarc", "nano_ebm", "m2_bert"):
        make_model(family).save_pretrained(folder / family)
        make_tokenizer(family).save_pretrained(folder / family)
    (folder / "texts.txt").write_text("import os\nimport sys\n")
    (folder / "lists.jsonl").write_text(json.dumps({"context": "import ", "candidates": ["os", "xx"]}) + "\n")
    commands = {name: arguments for name, (arguments, _) in NEEDS.items()} | WORKS
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)],
        cwd=folder, env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found, loaded = json.loads(done.stdout.splitlines()[-1])
    assert loaded == []
    return found


@pytest.mark.parametrize("name", NEEDS)
def test_a_missing_package_is_named_with_the_line_that_installs_it(outcome, name):
    status, _, error = outcome[name]
    extras = re.findall(r'pip install "hf_elm\[([a-z,]+)\]"', error)
    assert status == 2, error
    assert "Traceback" not in error
    assert extras, error
    assert all(extra.startswith(NEEDS[name][1]) for extra in extras), error


@pytest.mark.parametrize("name", WORKS)
def test_the_base_packages_are_enough(outcome, name):
    status, printed, error = outcome[name]
    assert status == 0, error
    assert printed or error
