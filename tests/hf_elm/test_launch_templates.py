"""The files below recipes/accelerate, recipes/slurm and recipes/skypilot are what the tools read."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

from hf_elm.modeling.m2_bert import M2BertConfig, M2BertForMaskedLM
from hf_elm.modeling.nano_ebm import NanoEBMConfig, NanoEBMForRefinement
from hf_elm.process_launch import FSDP_LAYERS, bundled_launch_configs, launch_command, split_launch


RECIPES = Path(__file__).resolve().parents[2] / "recipes"
CONFIGS = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
    "tpu": DistributedType.XLA,
    "multi_node": DistributedType.MULTI_GPU,
}


def test_every_config_is_bundled():
    assert bundled_launch_configs().keys() == CONFIGS.keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_accelerate_reads_the_config_and_our_command_line(name, monkeypatch):
    for variable in ("LOCAL_RANK", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(variable, raising=False)
    config = load_config_from_file(str(bundled_launch_configs()[name]))
    assert config.distributed_type == CONFIGS[name]
    assert config.num_processes > 1
    known = {action.dest for action in launch_command_parser()._actions}
    engine = {**config.fsdp_config, **config.deepspeed_config}
    assert engine.keys() <= known, "options that accelerate launch does not know"
    request, rest = split_launch(
        ["monarc_tiny", "launch=accelerate", f"launch.config={name}", "launch.num_processes=3"]
    )
    words = launch_command(request, "train", rest, "Block")
    parsed = launch_command_parser().parse_args(words[3:])
    assert parsed.module
    assert parsed.num_processes == 3
    assert parsed.training_script in ("hf_elm", "hf_elm.__main__")
    assert parsed.training_script_args == ["train", "monarc_tiny"]
    assert (parsed.fsdp_transformer_layer_cls_to_wrap == "Block") == (name == "fsdp2")


@pytest.mark.parametrize(
    ("family", "model_class", "config"),
    [
        ("nano_ebm", NanoEBMForRefinement, NanoEBMConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)),
        (
            "m2_bert",
            M2BertForMaskedLM,
            M2BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, intermediate_size=8, filter_order=4, mlp_num_blocks=1),
        ),
    ],
)  # fmt: skip
def test_layers_that_fsdp_shards_exist(family, model_class, config):
    names = [type(module).__name__ for module in model_class(config).modules()]
    assert names.count(FSDP_LAYERS[family]) == 1
    assert FSDP_LAYERS[family] in model_class._no_split_modules


def test_cluster_templates_start_the_command():
    script = RECIPES / "slurm" / "train.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "-m hf_elm train" in script.read_text()
    sky = yaml.safe_load((RECIPES / "skypilot" / "train.yaml").read_text())
    subprocess.run(["bash", "-n"], input=sky["run"] + sky["setup"], text=True, check=True)
    assert "-m hf_elm train" in sky["run"]
    used = set(re.findall(r"\$\{?([A-Z_]+)", sky["run"])) - {"HEAD_IP"}
    assert {name for name in used if not name.startswith("SKYPILOT_")} <= sky["envs"].keys()
