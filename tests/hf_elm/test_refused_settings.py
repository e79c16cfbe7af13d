"""Settings and files that cannot be honoured, as a user meets them: one line that names what is wrong, and no folder left."""

import subprocess
import sys

import pytest
from safetensors import SafetensorError
from transformers import GPT2Config, GPT2LMHeadModel

from hf_elm import continuation, hub_folder, run_folder
from hf_elm.command_line import main
from hf_elm.modeling.monarc import MonArcForCausalLM
from hf_elm.saved_models import load_tokenizer
from hf_elm.trainers import build_tokenizer
from hf_elm.training_run import _refusals_of


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"paragraph {i}: " + "some words. " * 40 for i in range(60)))
    return path


def fails(capsys, arguments, *parts):
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"hf-elm {arguments[0]}: error: ")
    for part in parts:
        assert part in error


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("train.optim=foo", ["train settings", "foo"]),
        ("train.learning_rate=-1", ["learning_rate", "zero or positive", "-1"]),
        ("train.per_device_train_batch_size=0", ["per_device_train_batch_size", "at least 1"]),
        ("train.gradient_accumulation_steps=0", ["gradient_accumulation_steps", "at least 1"]),
        ("train.lr_scheduler_kwargs=abc", ["lr_scheduler_kwargs", "mapping"]),
        ("seed=-1", ["seed", "-1"]),
        ("model.text_config.hidden_size=33", ["model settings", "33"]),
        ("model.text_config.model_type=llamma", ['"llamma"', 'nearest is "llama"']),
    ],
)
def test_settings_that_transformers_or_torch_refuse(corpus, tmp_path, capsys, setting, parts):
    out = tmp_path / "out"
    given = [f"data.corpus={corpus}", f"output_dir={out}", "tokenizer.kind=byte", "model.preset=tiny"]
    fails(capsys, ["train", *given, "data.sequence_length=32", "train.max_steps=1", setting], *parts)
    assert not out.exists()


def test_a_recipe_without_a_model_section_is_complete(corpus, tmp_path, capsys):
    """It means a new model of the default shape; here the tokenizer's error comes first, not a missing key."""
    recipe = tmp_path / "bare.yaml"
    recipe.write_text("family: monarc\n")
    fails(capsys, ["train", recipe, f"data.corpus={corpus}", "tokenizer.kind=pretrained"], "tokenizer.path")


def test_a_place_below_a_file_is_refused_before_anything_is_computed(corpus, tmp_path, capsys):
    place = corpus / "below"
    fails(capsys, ["train", "monarc_tiny", f"output_dir={place}"], "output_dir", "is a file")
    fails(capsys, ["evaluate", f"checkpoint={tmp_path}", f"output={place}"], "output", "is a file")
    fails(capsys, ["export", tmp_path, place], "OUT", "is a file")


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ("temperature=0", "above 0"),
        ("top_k=-1", "at least 1"),
        ("top_p=2", "(0, 1]"),
        ("max_new_tokens=0", "at least 1"),
        ("repetition_penalty=0", "above 0"),
        ("num_return_sequences=0", "at least 1"),
        ("seed=-1", "[0, 2**32)"),
    ],
)
def test_generation_numbers_out_of_range(tmp_path, capsys, setting, rule):
    (tmp_path / "config.json").write_text('{"model_type": "monarc"}')
    fails(capsys, ["generate", f"checkpoint={tmp_path}", "prompt=a", setting], setting.split("=")[0], rule)


def test_one_greedy_continuation_only(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "monarc"}')
    arguments = ["generate", f"checkpoint={tmp_path}", "prompt=a", "do_sample=false", "num_return_sequences=2"]
    fails(capsys, arguments, "num_return_sequences", "do_sample=false")


def test_refusals_name_the_section():
    with pytest.raises(ValueError, match=r"^model settings: too wide$"), _refusals_of("model settings"):
        raise TypeError("too wide")


def test_a_folder_without_tokenizer_files_says_so(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "monarc"}')
    with pytest.raises(ValueError, match="no tokenizer files; save one there"):
        load_tokenizer(str(tmp_path), "checkpoint")


def test_an_export_to_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    class FullDisk:
        def save_pretrained(self, folder):
            raise SafetensorError("No space left on device")

    monkeypatch.setattr(hub_folder, "load_checkpoint", lambda *_, **__: (FullDisk(), FullDisk()))
    with pytest.raises(OSError, match=r"OUT=.*No space left on device"):
        hub_folder.export_checkpoint("any", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match=r"output_dir=.*no permission"):
        run_folder.claim(tmp_path / "new", {}, resume=False)


def test_a_continuation_ends_with_the_models_positions(monkeypatch):
    shape = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 12}
    tokenizer = build_tokenizer("byte")
    lm = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=None, **shape))
    model = MonArcForCausalLM.from_causal_lm(lm).eval()
    monkeypatch.setattr(continuation, "load_checkpoint", lambda *_: (model, tokenizer))
    for num_candidates in (1, 4):
        options = {
            "max_new_tokens": 50,
            "num_candidates": num_candidates,
            "do_sample": True,
            "num_return_sequences": 2,
        }
        assert len(continuation.continue_prompt("any", "abcd", stream=False, seed=0, **options)) == 2


WITHOUT_TRAIN_EXTRA = """
import sys

class Block:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "datasets":
            raise ModuleNotFoundError("blocked", name="datasets")

sys.meta_path.insert(0, Block())
import hf_elm.continuation  # generating needs no extra
from hf_elm import trainers
from hf_elm.command_line import main

try:
    trainers.load_corpus
except ModuleNotFoundError as error:
    sys.stderr.write(f"{error}\\n")
sys.exit(main(["train", "monarc_tiny", "output_dir=" + sys.argv[1]]))
"""


def test_a_missing_extra_is_named_with_its_install_line(tmp_path):
    command = [sys.executable, "-c", WITHOUT_TRAIN_EXTRA, str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.count('pip install "hf_elm[train]"') == 2
    assert "Traceback" not in result.stderr
