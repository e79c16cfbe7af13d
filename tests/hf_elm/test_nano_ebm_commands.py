"""nanoEBM from the command line, in this package's words and in the original README's."""

import inspect
import json
import textwrap
from pathlib import Path

import pytest

from hf_elm.command_line import main
from hf_elm.commands.generate import schema as generation_schema
from hf_elm.commands.train import resolve_settings
from hf_elm.recipes import split_arguments


FIXTURE = Path(__file__).parents[1] / "fixtures" / "nano_ebm"
TINY = ["model.hidden_size=32", "model.num_hidden_layers=2", "model.num_attention_heads=4", "data.block_size=32"]
ORIGINAL_TRAINING = [  # what stands after `python train.py` in the original README
    "model.use_contrastive=true",
    "data.data_path=shakespeare.txt data.batch_size=64 model.softmax_temperature=1.0 model.entropy_weight=0.1 "
    "model.aux_ce_weight=0.1 model.think_steps=2 model.think_lr=0.5 model.think_max_move=0.25 model.mixture_stopgrad=true "
    "train.max_steps=5000 train.learning_rate=3e-4",
    "model.use_contrastive=true model.contrastive_type=pcd",
    "model.use_contrastive=true model.contrastive_type=fast_pcd",
    "model.use_contrastive=true model.contrastive_type=cd model.contrastive_k=5 model.contrastive_weight=0.2 "
    "model.langevin_step_size=0.01 model.langevin_noise_scale=0.005",
    "model.use_contrastive=true model.contrastive_weight=0.1 train.max_steps=100",
    "model.use_contrastive=true model.contrastive_type=pcd model.contrastive_weight=0.2 train.max_steps=100",
    "model.use_contrastive=true model.contrastive_weight=0.01 model.contrastive_k=1 train.max_steps=100",
    "model.n_layer=8 model.n_head=8 model.n_embd=512 model.refine_steps=6 model.dropout=0.2 model.use_contrastive=true "
    "model.contrastive_type=pcd model.contrastive_k=10 model.contrastive_weight=0.15 model.n_persistent=500 "
    "data.batch_size=128 data.block_size=256 train.max_steps=10000 train.learning_rate=6e-4 train.compile=true "
    "wandb_project=nanoebm wandb_name=h100_8L_512d_pcd10_shakespeare",
    "wandb_project=nanoebm",
]
ORIGINAL_SAMPLING = {  # what stands after `python sample.py checkpoint=...`
    'max_new_tokens=20 prompt="HAMLET:"': {"max_new_tokens": 20},
    "use_thinking=true think_steps=4 topk=64": {"think_steps": 4, "think_topk": 64, "use_thinking": True},
    "use_thinking=true think_steps=4 topk=64 sample=true sample_temp=1.2 sample_top_p=0.9": {
        "do_sample": True, "temperature": 1.2, "top_p": 0.9, "think_topk": 64,
    },
    "use_thinking=false sample=false": {"use_thinking": False, "do_sample": False},
}  # fmt: skip


@pytest.mark.parametrize("line", ORIGINAL_TRAINING)
def test_the_original_training_commands_mean_what_they_say(line):
    from hf_elm.modeling.nano_ebm import NanoEBMConfig

    settings = resolve_settings(["family=nano-ebm", *line.split()], "train")
    fields = {
        name: value
        for name, value in settings.get("model", {}).items()
        if name not in ("preset", "base", "checkpoint")
    }
    config = NanoEBMConfig(**fields)
    ours = {"n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_embd": "hidden_size"}
    ours |= {"refine_steps": "think_steps"}
    for argument in line.split():
        name, _, value = argument.partition("=")
        section, _, leaf = name.partition(".")
        if section == "model":
            found = getattr(config, ours.get(leaf, leaf))
            assert str(found).lower() == value or float(found) == float(value), argument
    if "wandb_project" in line:
        assert settings["train"]["wandb_project"] == "nanoebm"
    if "data.batch_size" in line:
        assert settings["train"]["per_device_train_batch_size"] in (64, 128)


@pytest.mark.parametrize("line", ORIGINAL_SAMPLING)
def test_the_original_sampling_commands_mean_what_they_say(line):
    _, given = split_arguments(["checkpoint=x", *line.split()], generation_schema("nano_ebm"))
    assert given.items() >= ORIGINAL_SAMPLING[line].items()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nano_ebm")
    corpus = folder / "text.txt"
    corpus.write_text(inspect.getsource(textwrap), encoding="utf-8")
    arguments = [
        "train", "family=nano-ebm", f"data.data_path={corpus}", f"output_dir={folder / 'run'}", *TINY, "tokenizer.kind=char",
        "data.batch_size=4", "train.max_steps=3", "train.disable_tqdm=true", "model.use_contrastive=true",
        "model.contrastive_type=pcd", "model.contrastive_k=2", "train.use_cpu=true", "train.logging_steps=1",
    ]  # fmt: skip
    assert main(arguments) == 0
    return folder / "run"


def test_a_run_reports_both_systems(run):
    metrics = json.loads((run / "likelihood.json").read_text())
    assert metrics["eval_delta_nll"] == pytest.approx(metrics["eval_nll_s2"] - metrics["eval_nll_s1"], abs=1e-4)
    assert metrics["eval_energy_gap"] > 0
    logs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"nll_s1", "nll_s2", "delta_nll", "alpha_1", "alpha_2", "contrastive_loss"} <= logs[0].keys()


@pytest.mark.parametrize("line", ORIGINAL_SAMPLING)
def test_it_generates(run, capsys, line):
    options = [option for option in line.split() if not option.startswith(("prompt", "max_new"))]
    assert main(["generate", f"checkpoint={run}", "prompt=def wrap(", "max_new_tokens=8", *options]) == 0
    assert capsys.readouterr().out.startswith("def wrap(")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prompt=x", "max_new_tokens=2", "think_lr=1.5"], "think_lr must be in (0, 1]"),
        (["prompt=x", "max_new_tokens=2", "think_steps=-1"], "think_steps must be"),
        (["prompt=price: 5 £", "max_new_tokens=2"], "'£'"),
    ],
)
def test_errors_are_one_line(run, capsys, arguments, message):
    assert main(["generate", f"checkpoint={run}", *arguments]) != 0
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error


def test_evaluate_agrees_with_the_trainer_and_leaves_unknown_text_out(run, capsys, tmp_path):
    assert main(["evaluate", f"checkpoint={run}", f"output={tmp_path / 'own.json'}"]) == 0
    own, trained = json.loads((tmp_path / "own.json").read_text()), json.loads((run / "likelihood.json").read_text())
    for name in ("s1", "s2"):
        assert own[f"{name}_nll"] == pytest.approx(
            trained[f"eval_nll_{name}"], abs=1e-4
        )  # the trainer rounds its logs
    other = tmp_path / "other.txt"
    other.write_text("def wrap(text): £<|endoftext|>def fill(text): £")
    assert main(["evaluate", f"checkpoint={run}", f"data.corpus={other}", f"output={tmp_path / 'other.json'}"]) == 0
    assert json.loads((tmp_path / "other.json").read_text())["num_unknown_tokens"] == 2
    out = " ".join(capsys.readouterr().out.split())  # titles are broken to the width of the table
    assert "system 2" in out
    assert "2 tokens of unknown text left out" in out


def test_evaluate_refuses_keys_of_other_families(run, capsys):
    assert main(["evaluate", f"checkpoint={run}", "num_samples=4"]) == 2
    assert "num_samples does not concern" in capsys.readouterr().err


def test_convert_gives_a_folder_that_generates(tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    assert main(["convert", "nano-ebm", str(FIXTURE), str(tmp_path / "out")]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(model).__name__ == "NanoEBMForRefinement"


def test_the_top_level_names_are_there():
    import hf_elm

    assert hf_elm.NanoEBMConfig.model_type == "nano_ebm"
    assert hf_elm.NanoEBMForRefinement.config_class is hf_elm.NanoEBMConfig
    assert callable(hf_elm.attach_refinement)
