"""Conversion of the original checkpoints: the numbers survive, and every file that does not fit says why."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from hf_elm.modeling.monarc import convert_monarc
from hf_elm.modeling.nano_ebm import NanoEBMForRefinement, convert_nano_ebm
from hf_elm.modeling.nano_ebm.convert_nano_ebm import convert_reference_checkpoint


FIXTURE = Path(__file__).parents[2] / "fixtures" / "nano_ebm"


@pytest.fixture
def checkpoint(tmp_path):
    """A file as the original code saves it."""
    folder = tmp_path / "source"
    folder.mkdir()
    path = folder / "final.pt"
    fields = json.loads((FIXTURE / "config.json").read_text())
    torch.save({"model": load_file(FIXTURE / "model.safetensors"), "config": fields, "step": 100}, path)
    return path


def rewrite(path, **changes):
    torch.save(torch.load(path, weights_only=True) | changes, path)


def refused(source, out, message, error=ValueError):
    with pytest.raises(error, match=message):
        convert_reference_checkpoint(source, out)
    assert sorted(path.name for path in out.parent.iterdir()) == ["source"]  # no OUT, no temporary folder


def check_numbers(out):
    recorded = load_file(FIXTURE / "tensors.safetensors")
    model = NanoEBMForRefinement.from_pretrained(out).eval()
    with torch.no_grad():
        found = model(recorded["idx"], output_trajectory=True).trajectory
    assert_close(found, recorded["traj_a0.02_hard"], atol=5e-5, rtol=1e-5)
    return model


@pytest.mark.parametrize("kind", ["file", "folder", "safetensors", "wrapped"])
def test_a_converted_checkpoint_gives_the_recorded_numbers(checkpoint, tmp_path, kind):
    source = {"file": checkpoint, "folder": checkpoint.parent, "safetensors": FIXTURE, "wrapped": checkpoint}[kind]
    if (
        kind == "wrapped"
    ):  # saved from torch.compile inside DistributedDataParallel, with the model's config below "model"
        saved = torch.load(checkpoint, weights_only=True)
        state = {f"module._orig_mod.{key}": value for key, value in saved["model"].items()}
        rewrite(checkpoint, model=state, config={"model": saved["config"], "train": {"lr": 1e-3}})
    (checkpoint.parent / "tokenizer.json").write_text("{}")
    report = convert_reference_checkpoint(source, tmp_path / "out")
    model = check_numbers(tmp_path / "out")
    assert [key.rpartition("transformer.")[2] for key in report.dropped] == ["lm_head.weight"]
    assert report.copied == ([] if kind == "safetensors" else ["tokenizer.json"])
    config = model.config
    assert (config.energy_type, config.geometry, config.grad_reduction) == ("linear", "logits", "mean")
    assert (config.think_lr, config.think_steps, config.think_tolerance) == (pytest.approx(0.02), 4, 0.0)
    assert not model.step_sizes.raw.requires_grad
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_the_published_tolerance_and_step_size_are_taken_over(checkpoint, tmp_path):
    saved = torch.load(checkpoint, weights_only=True)
    fields = saved["config"] | {"refine_steps": 3}
    del fields["energy_convergence_threshold"]
    rewrite(checkpoint, config=fields, model=saved["model"] | {"alpha": torch.tensor(0.5)})
    convert_reference_checkpoint(checkpoint, tmp_path / "out")
    model = NanoEBMForRefinement.from_pretrained(tmp_path / "out")
    assert (model.config.think_tolerance, model.config.think_steps) == (1e-4, 3)
    assert model.step_sizes().tolist() == pytest.approx([0.5] * 3)


class Payload:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_a_pickle_that_could_run_code_is_refused(checkpoint, tmp_path, capsys):
    with checkpoint.open("wb") as file:
        pickle.dump({"model": {}, "config": Payload()}, file, protocol=2)
    refused(checkpoint, tmp_path / "out", "is refused: it is damaged or holds more than tensors")
    rewrite_with_object = {"model": {}, "config": Payload()}
    torch.save(rewrite_with_object, checkpoint)
    refused(checkpoint, tmp_path / "out", "unpickling that could run code")
    assert "unpickled" not in capsys.readouterr().out


def test_what_does_not_fit_is_named(checkpoint, tmp_path):
    out = tmp_path / "out"
    saved = torch.load(checkpoint, weights_only=True)
    state, fields = saved["model"], saved["config"]
    without = {key: value for key, value in state.items() if "c_fc" not in key}
    rewrite(checkpoint, model=without)
    refused(checkpoint, out, r"missing: trunk\.blocks\.0\.up\.bias")
    rewrite(checkpoint, model=state | {"transformer.transformer.mystery.weight": torch.ones(1)})
    refused(checkpoint, out, r"unexpected: mystery\.weight")
    rewrite(checkpoint, model=state, config=fields | {"n_embd": 64})
    refused(checkpoint, out, "of another shape")
    rewrite(checkpoint, config={"n_layer": 2})
    refused(checkpoint, out, "the configuration lacks vocab_size, block_size, n_head, n_embd")
    rewrite(checkpoint, config=None)
    refused(checkpoint, out, 'has no "config"; put a config.json')
    rewrite(checkpoint, model={"transformer.transformer.wte.weight": torch.ones(2, 2)}, config=fields)
    refused(checkpoint, out, r"has no energy_head\.weight")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    refused(checkpoint, out, "is not a readable checkpoint|is refused")
    torch.save([1, 2], checkpoint)
    refused(checkpoint, out, 'must hold a dict with "model" and "config"')
    checkpoint.unlink()
    refused(checkpoint, out, "does not exist", FileNotFoundError)
    refused(checkpoint.parent, out, "must hold model.safetensors with config.json, or one .pt file", FileNotFoundError)
    shutil.copy(FIXTURE / "model.safetensors", checkpoint.parent)
    refused(checkpoint.parent, out, r"config\.json does not exist", FileNotFoundError)


def test_a_converted_folder_is_not_converted_again(checkpoint, tmp_path):
    convert_reference_checkpoint(checkpoint, tmp_path / "out")
    with pytest.raises(ValueError, match="is converted already"):
        convert_reference_checkpoint(tmp_path / "out", tmp_path / "again")
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        convert_reference_checkpoint(checkpoint, tmp_path / "out")
    convert_reference_checkpoint(checkpoint, tmp_path / "out", overwrite=True)
    check_numbers(tmp_path / "out")


def test_the_copies_of_shared_code_are_equal():
    """No family imports another: what two of them need is repeated, and stays the same."""

    def tail(module):
        return Path(module.__file__).read_text().partition("@contextlib.contextmanager")[2]

    assert tail(convert_nano_ebm) == tail(convert_monarc) != ""
