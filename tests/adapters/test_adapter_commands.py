"""The section ``peft`` of train and adapt, and adapter folders given to evaluate, generate and export."""

import json
import shutil

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, LlamaConfig, LlamaForCausalLM

import hf_elm.hub_folder
from hf_elm.command_line import main
from hf_elm.saved_models import load_checkpoint
from hf_elm.trainers.tokenization import build_tokenizer
from tests.trainers.tiny_training import TINY_LM


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning"
)  # peft asks for the old name
QUICK = [
    "data.sequence_length=32", "data.held_out_fraction=0.3", "train.max_steps=3", "train.per_device_train_batch_size=4",
    "train.use_cpu=true", "train.disable_tqdm=true", "train.learning_rate=0.03", "train.warmup_steps=0", "evaluate.max_tokens=64",
    "evaluate.num_samples=4", "evaluate.exact_top=4", "evaluate.progress=false",
]  # fmt: skip
MERGED = 1e-5  # float32: W x + B A x against (W + B A) x


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    torch.manual_seed(0)
    tokenizer = build_tokenizer("byte")
    LlamaForCausalLM(LlamaConfig(**{**TINY_LM, "vocab_size": len(tokenizer)})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for index in range(8):
        (folder / f"{index}.txt").write_text(f"document {index}: " + "abc def ghi jkl. " * (6 + index))
    return folder


@pytest.fixture(scope="module")
def adapted(lm, text, tmp_path_factory):
    """A run of ``hf-elm adapt`` with LoRA on all linear layers and the head trained whole."""
    out = tmp_path_factory.mktemp("runs") / "adapted"
    arguments = ["monarc_adapt_joint", f"model.base={lm}", f"data.corpus={text}", f"output_dir={out}", "peft.r=2"]
    assert main(["adapt", *arguments, *QUICK, "train.energy_learning_rate=0.1", "train.save_steps=2"]) == 0
    return out


def ids():
    return torch.randint(97, 123, (2, 11), generator=torch.Generator().manual_seed(0))


def test_run_holds_the_adapter_and_its_base(adapted, lm):
    files = {path.name for path in adapted.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "recipe.yaml", "likelihood.json", "base"} <= files
    assert "model.safetensors" not in files
    assert "peft:" in (adapted / "recipe.yaml").read_text()
    base = AutoModelForCausalLM.from_pretrained(adapted / "base").eval()
    assert not base.energy_head.previous_proj.weight.any()  # as it was before training
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(lm)(input_ids=ids()).logits
        assert torch.equal(base(input_ids=ids()).logits, plain)
        unmerged = AutoModelForCausalLM.from_pretrained(adapted).eval()(input_ids=ids())
        merged = load_checkpoint(str(adapted))[0](input_ids=ids())
    assert (unmerged.logits - plain).abs().max() > 1e-3
    assert unmerged.energies.abs().max() > 1e-3
    for key in ("logits", "energies"):
        assert_close(merged[key], unmerged[key], atol=MERGED, rtol=MERGED)


def test_evaluate_and_generate(adapted, tmp_path, capsys):
    options = [option.removeprefix("evaluate.") for option in QUICK if option.startswith("evaluate.")]
    out = tmp_path / "likelihood.json"
    assert main(["evaluate", f"checkpoint={adapted}", f"output={out}", *options]) == 0
    ours, theirs = json.loads(out.read_text()), json.loads((adapted / "likelihood.json").read_text())
    assert ours["num_tokens"] == theirs["num_tokens"]
    for key in ("lm_nll", "mean_energy"):
        assert ours[key] == pytest.approx(theirs[key], abs=1e-4)  # printed from float32 sums over 64 tokens
    capsys.readouterr()
    assert main(["generate", f"checkpoint={adapted}", "prompt=abc", "max_new_tokens=5", "num_candidates=3"]) == 0
    assert capsys.readouterr().out.startswith("abc")


def test_checkpoints_and_moved_runs_find_their_base(adapted, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(adapted, moved)
    expected = load_checkpoint(str(adapted))[0](input_ids=ids()).energies
    config = json.loads((moved / "adapter_config.json").read_text())
    for folder in (moved, moved / "checkpoint-3"):
        (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/not/there"}))
        assert torch.equal(load_checkpoint(str(folder))[0](input_ids=ids()).energies, expected)
    shutil.rmtree(moved / "base")
    with pytest.raises(FileNotFoundError, match=r"adapts /not/there, which does not exist"):
        load_checkpoint(str(moved))
    (moved / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": ""}))
    with pytest.raises(ValueError, match="does not say what it adapts"):
        load_checkpoint(str(moved))


def test_export_merges(adapted, tmp_path, monkeypatch):
    checked = []
    monkeypatch.setattr(hf_elm.hub_folder, "check_hub_folder", lambda folder, model: checked.append(model))
    assert main(["export", str(adapted), str(tmp_path / "out")]) == 0
    assert len(checked) == 1
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert not [name for name in exported.state_dict() if "lora_" in name]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(adapted).eval()(input_ids=ids())
        for key in ("logits", "energies"):
            assert_close(exported(input_ids=ids())[key], expected[key], atol=MERGED, rtol=MERGED)


def test_adapter_of_a_saved_model_and_a_resumed_run(adapted, text, tmp_path):
    """The energy alone is trained: the LM stays as it is; resumed after two steps, the weights are those of one run."""
    base = load_checkpoint(str(adapted))[0]
    base.save_pretrained(tmp_path / "model")
    build_tokenizer("byte").save_pretrained(tmp_path / "model")
    start = [
        f"model.checkpoint={tmp_path / 'model'}", f"data.corpus={text}", "peft.target_modules=[]", "evaluate.skip=true",
        "train.save_steps=2", "train.lr_scheduler_type=constant",
    ]  # fmt: skip
    common = [*start, *QUICK]
    assert main(["train", *common, f"output_dir={tmp_path / 'whole'}"]) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoint-3")
    (tmp_path / "parts" / "adapter_model.safetensors").unlink()
    assert main(["train", *common, f"output_dir={tmp_path / 'parts'}", "resume=true"]) == 0
    assert not (tmp_path / "whole" / "base").exists()
    whole, parts = (load_checkpoint(str(tmp_path / name))[0] for name in ("whole", "parts"))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(whole.parameters(), parts.parameters(), strict=True))
    with torch.no_grad():
        before, after = base(input_ids=ids()), whole(input_ids=ids())
    assert torch.equal(before.logits, after.logits)
    assert (before.energies - after.energies).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["peft.target_modules=[q_porj]"], '"q_porj" matches no module of MonArcForCausalLM; its linear layers are'),
        (["peft.modules_to_save=[head]"], 'modules_to_save has "head", which is no module of MonArcForCausalLM'),
        (["peft.r=0"], "`r` should be a positive integer"),
        (["model.freeze_lm=true", "peft.r=2"], "freeze_lm=True, but peft_config would train"),
        (["train.freeze_lm=false", "peft.target_modules=[]"], "peft_config trains none of the LM's weights"),
        (["model.energy_adapter_rank=2", "peft.r=2"], "energy_adapter_rank=2"),
        (["peft.rank=2"], 'unknown key "peft.rank"'),
    ],
)
def test_contradictions_are_named(settings, message, lm, text, tmp_path, capsys):
    arguments = ["monarc_adapt_joint", f"model.base={lm}", f"data.corpus={text}", f"output_dir={tmp_path / 'out'}"]
    assert main(["adapt", *arguments, *QUICK, *settings]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "auto", "options"),
    [
        ("nano_ebm", AutoModelForCausalLM, ["model.hidden_size=32", "model.num_attention_heads=2"]),
        (
            "m2_bert",
            AutoModelForMaskedLM,
            ["model.hidden_size=32", "model.intermediate_size=64", "model.filter_order=8"],
        ),
    ],
)
def test_other_families(family, auto, options, text, tmp_path):
    """A new model, saved as it was made, and the adapter that was trained on it."""
    quick = [option for option in QUICK if not option.startswith("evaluate.")]
    arguments = [
        f"family={family}",
        "model.num_hidden_layers=2",
        *options,
        f"data.corpus={text}",
        "peft.r=2",
        "evaluate.skip=true",
    ]
    assert main(["train", *arguments, *quick, f"output_dir={tmp_path / 'out'}"]) == 0
    base, unmerged = (auto.from_pretrained(tmp_path / name).eval() for name in ("out/base", "out"))
    merged = load_checkpoint(str(tmp_path / "out"))[0]
    with torch.no_grad():
        plain, expected, found = (model(input_ids=ids()).logits for model in (base, unmerged, merged))
    assert (expected - plain).abs().max() > 1e-3
    assert_close(found, expected, atol=MERGED, rtol=MERGED)
