"""What is left on disk when a run goes wrong: non-finite values, a full disk, half-written and corrupt checkpoints."""

import errno
import shutil

import pytest
import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, TrainerCallback

from hf_elm.trainers.checkpoint_folders import (
    CheckpointSaveError,
    last_usable_checkpoint,
    why_unusable,
    written_whole,
)
from hf_elm.trainers.finite_guard import NonFiniteError
from hf_elm.trainers.residual_energy_trainer import ResidualEnergyTrainer
from tests.trainers.tiny_training import quiet_config, ragged_rows, tiny_model


def saving_trainer(tmp_path, callbacks=None, **fields):
    args = quiet_config(tmp_path, **{"max_steps": 6, "save_strategy": "steps", "save_steps": 2, **fields})
    return ResidualEnergyTrainer(tiny_model(), args, train_dataset=ragged_rows(8), callbacks=callbacks)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class At(TrainerCallback):
    """Calls ``action(model)`` before optimizer step ``step`` (counted from 1)."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.step:
            self.action(model)


@torch.no_grad()
def poison_energy(model):
    model.energy_head.token_proj.bias.fill_(float("inf"))


@torch.no_grad()
def poison_lm(model):
    model.lm.get_input_embeddings().weight.fill_(float("nan"))


def poison_gradient(model):
    model.energy_head.token_proj.bias.register_hook(lambda grad: grad * float("nan"))


@pytest.mark.parametrize(
    ("poison", "term"), [(poison_energy, "energy_loss"), (poison_lm, "lm_loss"), (poison_gradient, "grad_norm")]
)
@pytest.mark.parametrize("every_step", [True, False])
def test_nonfinite_values_stop_the_run(tmp_path, monkeypatch, poison, term, every_step):
    """The step and the term are named, and checkpoint-2 is the last; also where the values are looked at only when saving."""
    trainer = saving_trainer(tmp_path, [At(3, poison)], logging_steps=100)
    if not every_step:
        monkeypatch.setattr(trainer, "_checks_every_step", lambda: False)
    with pytest.raises(NonFiniteError, match=rf"{term} = .* at step 3: .*checkpoint-2\.") as caught:
        trainer.train()
    assert (caught.value.step, caught.value.term) == (3, term)
    assert isinstance(caught.value, FloatingPointError)
    assert trainer.state.global_step == (2 if every_step else 4)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2"]
    assert why_unusable(tmp_path / "checkpoint-2") is None


def test_nonfinite_values_can_be_let_through(tmp_path):
    trainer = saving_trainer(
        tmp_path, [At(2, poison_energy)], stop_on_nonfinite=False, max_steps=3, save_strategy="no"
    )
    trainer.train()
    assert trainer.state.global_step == 3


@pytest.mark.parametrize("part", ["weights", "optimizer"])
def test_full_disk_leaves_no_half_checkpoint(tmp_path, monkeypatch, part):
    """ENOSPC in checkpoint-4: the error says so, checkpoint-2 is untouched, checkpoint-4 is gone, and the run resumes from 2."""
    trainer = saving_trainer(tmp_path)
    save_weights, save = PreTrainedModel.save_pretrained, torch.save

    def full_disk(path):
        if trainer.state.global_step == 4:
            with open(path, "wb") as file:
                file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    def failing_weights(self, folder, **kwargs):
        save_weights(self, folder, **kwargs)
        full_disk(f"{folder}/model.safetensors")

    def failing_save(value, path, **kwargs):
        if str(path).endswith("optimizer.pt"):
            full_disk(path)
        save(value, path, **kwargs)

    if part == "weights":
        monkeypatch.setattr(PreTrainedModel, "save_pretrained", failing_weights)
    else:
        monkeypatch.setattr(torch, "save", failing_save)
    with pytest.raises(
        CheckpointSaveError, match=r"checkpoint-4 could not be saved: .*No space left.*checkpoint-2"
    ) as caught:
        trainer.train()
    assert caught.value.errno == errno.ENOSPC
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "metrics.jsonl"]
    assert why_unusable(tmp_path / "checkpoint-2") is None
    monkeypatch.undo()
    resumed = saving_trainer(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6


def test_a_failure_without_an_error_number_shows_none(tmp_path):
    """safetensors reports a full disk by an error of its own, which has no errno."""
    with pytest.raises(CheckpointSaveError) as caught, written_whole(tmp_path / "checkpoint-1"):
        raise SafetensorError("No space left on device")
    assert str(caught.value).startswith(str(tmp_path))


def test_failed_rewrite_keeps_the_older_checkpoint_of_the_same_step(tmp_path, monkeypatch):
    saving_trainer(tmp_path, max_steps=2).train()
    before = contents(tmp_path / "checkpoint-2")
    trainer = saving_trainer(tmp_path, max_steps=2, learning_rate=0.5)

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trainer, "_save_rng_state", fail)
    with pytest.raises(CheckpointSaveError):
        trainer.train()
    assert contents(tmp_path / "checkpoint-2") == before


def test_failed_final_save_overwrites_nothing(tmp_path, monkeypatch):
    trainer = saving_trainer(tmp_path, save_strategy="no")
    trainer.save_model()
    before = contents(tmp_path)

    def fail(self, folder, **kwargs):
        with open(f"{folder}/model.safetensors", "wb") as file:
            file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        trainer.save_model()
    assert contents(tmp_path) == before


def test_broken_checkpoints_are_passed_over_and_refused_by_name(tmp_path):
    saving_trainer(tmp_path, max_steps=2).train()
    good = tmp_path / "checkpoint-2"
    interrupted, truncated, torn = (tmp_path / f"checkpoint-{step}" for step in (4, 6, 8))
    for folder in (interrupted, truncated, torn):
        shutil.copytree(good, folder)
    (interrupted / "trainer_state.json").unlink()
    weights = (truncated / "model.safetensors").read_bytes()
    (truncated / "model.safetensors").write_bytes(weights[:-100])
    (torn / "optimizer.pt").write_bytes((good / "optimizer.pt").read_bytes()[:500])
    assert last_usable_checkpoint(tmp_path) == str(good)
    for folder, reason in (
        (interrupted, "interrupted"),
        (truncated, "model.safetensors is corrupt"),
        (torn, "optimizer.pt"),
    ):
        with pytest.raises(ValueError, match=rf"{reason}.*last whole checkpoint in output_dir is .*checkpoint-2"):
            saving_trainer(tmp_path).train(resume_from_checkpoint=str(folder))
    trainer = saving_trainer(tmp_path, max_steps=3)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3
    with pytest.raises(ValueError, match="holds no whole checkpoint"):
        saving_trainer(tmp_path / "empty").train(resume_from_checkpoint=True)
