"""Conversion of the original checkpoints: the numbers survive, and every folder that does not fit says why."""

import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from hf_elm.modeling.monarc import MonArcForCausalLM
from hf_elm.modeling.monarc.convert_monarc import convert_reference_checkpoint


FIXTURE = Path(__file__).parents[2] / "fixtures" / "monarc"


@pytest.fixture
def source(tmp_path):
    """A folder as the original code saves it: config.json and state_dict.pt."""
    folder = tmp_path / "source"
    folder.mkdir()
    shutil.copy(FIXTURE / "config.json", folder)
    torch.save(load_file(FIXTURE / "model.safetensors"), folder / "state_dict.pt")
    return folder


def rewrite(source, change=None, fields=None):
    """Saves the weights after ``change`` and config.json with more ``fields``."""
    state = torch.load(source / "state_dict.pt", weights_only=True)
    state = change(state) or state if change else state
    torch.save(state, source / "state_dict.pt")
    config = json.loads((source / "config.json").read_text()) | (fields or {})
    (source / "config.json").write_text(json.dumps(config))


def refused(source, out, message, error=ValueError):
    with pytest.raises(error, match=message):
        convert_reference_checkpoint(source, out)
    assert sorted(path.name for path in out.parent.iterdir()) == ["source"]  # no OUT, no temporary folder


def energies(model, **options):
    recorded = load_file(FIXTURE / "tensors.safetensors")
    ids = recorded["input_ids"].long()
    # padding (96) belongs to document 0 in the original; it is on the right, so that no counted token sees it
    segments = recorded["segment_ids"].long()
    model.config.mask_segment_starts = False
    with torch.no_grad():
        out = model(input_ids=ids, segment_ids=segments, negatives=recorded["fake_ids"].long()[:, None], **options)
    counted = ids[:, 1:] != 96
    return (
        (out.energies[:, 1:][counted], recorded["true_arc"][:, :-1][counted]),
        (out.negative_energies[:, 0, 1:][counted], recorded["fake_arc"][:, :-1][counted]),
    )


@pytest.mark.parametrize("kind", ["state_dict.pt", "model.safetensors", "wrapped"])
def test_a_converted_checkpoint_gives_the_recorded_energies(source, tmp_path, kind):
    if kind == "model.safetensors":
        (source / "state_dict.pt").unlink()
        shutil.copy(FIXTURE / "model.safetensors", source)
    elif kind == "wrapped":  # saved from torch.compile inside DistributedDataParallel
        rewrite(source, lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()})
    (source / "tokenizer.json").write_text("{}")
    report = convert_reference_checkpoint(source, tmp_path / "out")
    model = MonArcForCausalLM.from_pretrained(tmp_path / "out")
    for ours, recorded in energies(model):
        assert_close(ours, recorded, atol=1e-5, rtol=0)
    assert report.num_parameters == sum(t.numel() for t in load_file(FIXTURE / "model.safetensors").values())
    assert report.dropped == []
    assert report.copied == ["tokenizer.json"]
    assert model.config.mask_segment_starts is False  # set above, for the comparison
    assert json.loads((tmp_path / "out" / "config.json").read_text())["mask_segment_starts"] is True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_reaper_checkpoint_loses_its_z_head_and_keeps_its_clamp(source, tmp_path):
    def change(state):
        state = {key.replace("arc_norm", "res_norm"): value for key, value in state.items()}
        state |= {
            "z_norm.weight": torch.ones(32),
            "z_norm.bias": torch.ones(32),
            "z_mu_head.weight": torch.ones(1, 32),
        }
        return state

    rewrite(source, change, {"model_type": "reaper", "architectures": ["ReaperLmModel"], "phi_scale": 2.303})
    report = convert_reference_checkpoint(source, tmp_path / "out")
    assert report.dropped == ["z_mu_head.weight", "z_norm.bias", "z_norm.weight"]
    model = MonArcForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.energy_bound == 2.303
    for ours, recorded in energies(model):
        assert_close(ours, 2.303 * torch.tanh(recorded / 2.303), atol=1e-5, rtol=0)


def test_a_checkpoint_without_log_prob_heads_converts_without_them(source, tmp_path):
    rewrite(source, lambda state: {key: value for key, value in state.items() if not key.startswith("l_")})
    convert_reference_checkpoint(source, tmp_path / "out")
    assert MonArcForCausalLM.from_pretrained(tmp_path / "out").config.energy_logprob_features is False


@pytest.mark.parametrize(
    ("key", "name"),
    [("forward_bias.weight", "DynamArc"), ("lm_proj.weight", "RemArc"), ("head_model.norm.bias", "MonArcLmModel")],
)
def test_deprecated_classes_are_refused_by_name(source, tmp_path, key, name):
    rewrite(source, lambda state: state | {key: torch.ones(1)})
    refused(source, tmp_path / "out", name)


def test_deprecated_classes_are_refused_by_their_config(source, tmp_path):
    rewrite(source, fields={"architectures": ["DynamArcLmModel"]})
    refused(source, tmp_path / "out", "DynamArcLmModel is a deprecated class")
    rewrite(source, fields={"architectures": ["ArcLmModel"], "reparam_arc": True})
    refused(source, tmp_path / "out", "reparam_arc")


def test_keys_that_do_not_fit_are_listed(source, tmp_path):
    def change(state):
        del state["model.norm.bias"]
        return state | {"extra.weight": torch.ones(1), "forward_head.bias": torch.ones(31)}

    rewrite(source, change)
    message = r"missing: lm.model.norm.bias; unexpected: lm.extra.weight; of another shape: .*previous_proj.bias \(31,\) instead of \(32,\)"
    refused(source, tmp_path / "out", message)


def test_pickles_that_could_run_code_are_refused(source, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"lm_head.weight": torch.ones(1), "x": Payload()}, source / "state_dict.pt")
    refused(source, tmp_path / "out", r"could run code.*model.safetensors")


def test_unreadable_files_are_refused(source, tmp_path):
    (source / "state_dict.pt").write_bytes((source / "state_dict.pt").read_bytes()[:2000])
    refused(source, tmp_path / "out", r"state_dict.pt is (refused|not a readable)")
    torch.save([1, 2], source / "state_dict.pt")
    refused(source, tmp_path / "out", "flat dict of tensors")
    (source / "model.safetensors").write_bytes((FIXTURE / "model.safetensors").read_bytes()[:60_000])
    refused(source, tmp_path / "out", "not a readable safetensors file")
    (source / "config.json").write_text("{")
    refused(source, tmp_path / "out", "not readable JSON")
    (source / "config.json").unlink()
    refused(source, tmp_path / "out", "config.json does not exist", FileNotFoundError)


def test_an_existing_folder_is_kept_unless_overwrite(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("x")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        convert_reference_checkpoint(source, out)
    assert (out / "precious").read_text() == "x"
    convert_reference_checkpoint(source, out, overwrite=True)
    assert not (out / "precious").exists()
    assert (out / "model.safetensors").is_file()
    with pytest.raises(ValueError, match="converted already"):
        convert_reference_checkpoint(out, tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


@pytest.mark.parametrize("exists", [False, True])
def test_a_full_disk_leaves_nothing_behind(source, tmp_path, exists):
    out = tmp_path / "out"
    if exists:
        out.mkdir()
        (out / "precious").write_text("x")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (60_000, limits[1])
    )  # the weights take twice that: writing fails half-way
    try:
        with pytest.raises(OSError, match=r"could not write out=.*free some space"):
            convert_reference_checkpoint(source, out, overwrite=exists)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(
        ["config.json", "state_dict.pt", "source", *(["out", "precious"] if exists else [])]
    )
