"""Tiny runs of every family, made once by the commands themselves, for the cases to copy and damage."""

import inspect
import json
import textwrap
from pathlib import Path

from tests.fuzz.oracle import run_quietly


SMALL = [
    "data.sequence_length=32",
    "train.per_device_train_batch_size=2",
    "train.max_steps=2",
    "train.save_steps=1",
    "train.logging_steps=1",
    "train.disable_tqdm=true",
    "train.report_to=none",
]
LM = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
FAMILIES = {
    "monarc": [
        "family=monarc",
        "model.preset=tiny",
        *(f"model.text_config.{key}={value}" for key, value in LM.items()),
        "evaluate.max_tokens=40",
        "evaluate.progress=false",
    ],
    "nano_ebm": [
        "family=nano_ebm",
        "model.hidden_size=16",
        "model.num_hidden_layers=1",
        "model.num_attention_heads=2",
    ],
    "m2_bert": [
        "family=m2_bert",
        "model.hidden_size=16",
        "model.num_hidden_layers=1",
        "model.intermediate_size=24",
        "model.filter_order=4",
    ],
}


def text() -> str:
    """About 6 kB of prose and code."""
    return inspect.getsource(textwrap)[:6000]


def succeed(*arguments: str) -> None:
    status, error = run_quietly([str(argument) for argument in arguments])
    assert status == 0, f"{arguments}: {error[-2000:]}"


def make_runs(folder: Path) -> dict[str, Path]:
    """Name -> folder: a run of two steps of each family, an adapter on the first, its model in shards, prepared rows."""
    corpus = folder / "text.txt"
    corpus.write_text(text(), encoding="utf-8")
    runs = {"text": corpus}
    for family, arguments in FAMILIES.items():
        runs[family] = folder / family
        succeed("train", *arguments, *SMALL, f"data.corpus={corpus}", f"output_dir={runs[family]}")
    (runs["monarc"] / "quickstart.json").write_text('{"sequence_length": 32}')  # of `hf-elm quickstart`
    runs["adapter"] = folder / "adapter"
    adapted = [f"model.checkpoint={runs['monarc']}", "peft.r=2", "evaluate.skip=true"]
    succeed("train", *adapted, *SMALL, f"data.corpus={corpus}", f"output_dir={runs['adapter']}")
    runs["sharded"] = folder / "sharded"
    _save_in_shards(runs["monarc"], runs["sharded"])
    runs["prepared"] = folder / "prepared"
    succeed(
        "prepare", f"output={runs['prepared']}", f"data.corpus={corpus}", "data.sequence_length=32", "progress=false"
    )
    return runs


def _save_in_shards(run, out):
    from hf_elm.saved_models import load_checkpoint

    model, tokenizer = load_checkpoint(str(run), "cpu")
    model.save_pretrained(out, max_shard_size="20KB")
    tokenizer.save_pretrained(out)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
