"""`hf-elm train` as several processes: what is executed, what is refused, and a run of two processes from the command line."""

import inspect
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from hf_elm.command_line import main
from hf_elm.process_launch import LAUNCHERS, bundled_launch_configs, launch_command, split_launch


ROOT = Path(__file__).resolve().parents[2]
SIZES = ["hidden_size=16", "intermediate_size=32", "num_hidden_layers=1", "num_attention_heads=2"]


@pytest.fixture(autouse=True)
def _not_launched(monkeypatch):
    for name in ("LOCAL_RANK", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)


def words(*arguments, layer=None):
    request, rest = split_launch(arguments)
    return launch_command(request, "train", rest, layer)[2:]


@pytest.mark.parametrize(
    "spelling",
    [["launch=torchrun", "launch.nproc_per_node=2"], ["--launch", "torchrun", "--launch.nproc-per-node", "2"]],
)
def test_torchrun_repeats_the_command(spelling):
    expected = ["torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m", "hf_elm", "train"]
    assert words("monarc_tiny", *spelling, "seed=3") == [*expected, "monarc_tiny", "seed=3"]


def test_options_of_a_rendezvous_replace_standalone():
    many = words("monarc_tiny", "launch=torchrun", "launch.nnodes=1:4", "launch.nproc_per_node=gpu")
    assert "--standalone" not in many
    assert many[1:5] == ["--nnodes", "1:4", "--nproc_per_node", "gpu"]
    passed = words("monarc_tiny", "launch=torchrun", "--", "--nproc-per-node=3", "--master_addr", "host")
    assert passed[1:4] == ["--nproc-per-node=3", "--master_addr", "host"]
    assert passed[-2:] == ["train", "monarc_tiny"]


def test_accelerate_gets_the_bundled_config_and_the_sharded_layer():
    configs = bundled_launch_configs()
    fsdp = words("r", "launch=accelerate", "launch.config=fsdp2", "launch.num_processes=4", layer="Block")
    assert fsdp[:3] == ["accelerate.commands.launch", "--config_file", str(configs["fsdp2"])]
    assert fsdp[3:] == [
        *("--num_processes", "4", "--fsdp_transformer_layer_cls_to_wrap", "Block", "-m", "hf_elm", "train", "r")
    ]
    assert "--fsdp_transformer_layer_cls_to_wrap" not in words("r", "launch=accelerate", layer="Block")  # ddp
    named = words(
        "r", "launch=accelerate", "launch.config=fsdp2", "launch.fsdp_transformer_layer_cls_to_wrap=A", layer="B"
    )
    assert named[named.index("--fsdp_transformer_layer_cls_to_wrap") + 1] == "A"
    assert "hf_elm.__main__" in words("r", "launch=accelerate", "launch.config=tpu")


def test_without_launch_nothing_changes():
    assert split_launch(["monarc_tiny", "seed=3"]) == (None, ["monarc_tiny", "seed=3"])
    assert split_launch(["launch=none", "monarc_tiny"]) == (None, ["monarc_tiny"])


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["launch=mpirun"], ("launch must be one of torchrun, accelerate", "mpirun")),
        (["launch=torchrun", "launch.nproc_per_node=0"], ("launch.nproc_per_node", "at least 1", "got 0")),
        (["launch=torchrun", "launch.nproc_per_node=two"], ("launch.nproc_per_node", "gpu", "got two")),
        (["launch=torchrun", "launch.nnodes=0:2"], ("launch.nnodes", "got 0:2")),
        (["launch=accelerate", "launch.num_processes=-1"], ("launch.num_processes", "got -1")),
        (["launch=accelerate", "launch.config=absent.yaml"], ("launch.config", "absent.yaml", "ddp")),
        (["launch=torchrun", "launch.config=ddp"], ("launch.config", "accelerate")),
        (["launch.nproc_per_node=2"], ("launch.nproc_per_node", "launch=torchrun")),
        (["--", "--standalone"], ("--", "launch=torchrun")),
        (["--launch"], ("needs a value",)),
        (["launch=torchrun", "launch.nproc_per_node=2", "train.max_stepz=1"], ("train.max_stepz", "train.max_steps")),
    ],
)  # fmt: skip
def test_wrong_launches_are_refused_in_one_line(capsys, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.setattr(os, "execv", lambda *words: pytest.fail("something was started"))
    assert main(["train", "monarc_tiny", f"output_dir={tmp_path / 'run'}", *arguments]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert all(part in message for part in parts), message
    assert not (tmp_path / "run").exists()


def test_a_launch_within_a_launch_and_a_claimed_folder_are_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "execv", lambda *words: pytest.fail("something was started"))
    (tmp_path / "mine.txt").write_text("kept")
    two = ["launch=torchrun", "launch.nproc_per_node=2"]
    assert main(["train", "monarc_tiny", f"output_dir={tmp_path}", *two]) == 2
    assert "choose another output_dir" in capsys.readouterr().err
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["train", "monarc_tiny", f"output_dir={tmp_path / 'run'}", *two]) == 2
    assert "leave launch out there" in capsys.readouterr().err


def test_both_commands_hand_over_what_they_were_given(capsys, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda program, words: started.append(words))
    two = ["launch=torchrun", "launch.nproc_per_node=2"]
    assert main(["train", "nano_ebm_shakespeare", f"output_dir={tmp_path / 'a'}", *two]) == 0
    assert main(["adapt", "model.base=gpt2", f"output_dir={tmp_path / 'b'}", *two]) == 0
    assert [each[0] for each in started] == [sys.executable, sys.executable]
    assert started[0][-4:] == ["hf_elm", "train", "nano_ebm_shakespeare", f"output_dir={tmp_path / 'a'}"]
    assert started[1][-4:] == ["hf_elm", "adapt", "model.base=gpt2", f"output_dir={tmp_path / 'b'}"]
    assert main(["train", "--help"]) == 0
    assert "launch.config" in capsys.readouterr().out


def run_command(arguments, cwd, launcher=()):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *launcher, "-m", "hf_elm", *arguments]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=170, check=False)


@pytest.mark.multiprocess
@pytest.mark.parametrize("launcher", ["launch=torchrun", "torchrun", "launch=accelerate"])
def test_two_processes_from_the_command_line(tmp_path, launcher):
    """Rank 0 alone prints and writes; the folder is that of a run on one process."""
    corpus, out = tmp_path / "text.txt", tmp_path / "run"
    corpus.write_text(inspect.getsource(textwrap), encoding="utf-8")
    small = [
        "data.sequence_length=32",
        "train.per_device_train_batch_size=2",
        "train.max_steps=2",
        "train.save_steps=1",
    ]
    quiet = ["train.disable_tqdm=true", "train.logging_steps=1", "evaluate.max_tokens=64", "evaluate.progress=false"]
    sizes = [f"model.text_config.{size}" for size in SIZES]
    options = [f"data.corpus={corpus}", f"output_dir={out}", "train.use_cpu=true"]
    arguments = ["train", "monarc_tiny", *options, *small, *quiet, *sizes]
    before = ()
    if launcher == "torchrun":
        before = ("-m", LAUNCHERS["torchrun"], "--standalone", "--nproc_per_node", "2")
    elif launcher == "launch=torchrun":
        arguments += [launcher, "launch.nproc_per_node=2"]
    else:
        arguments += [launcher, "launch.config=ddp", "launch.num_processes=2", "launch.main_process_port=0"]
    done = run_command(arguments, tmp_path, before)
    assert done.returncode == 0, done.stderr[-3000:]
    environment = json.loads((out / "environment.json").read_text())
    assert environment["processes"] == 2
    assert {"recipe.yaml", "likelihood.json", "checkpoint-1", "checkpoint-2", "model.safetensors"} <= {
        path.name for path in out.iterdir()
    }
    losses = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in losses if "lm_loss" in line] == [1, 2]
    assert done.stdout.count("'train_runtime'") == 1
    assert done.stdout.count("'lm_loss'") == 2
    assert "launch" not in yaml.safe_load((out / "recipe.yaml").read_text())
