"""Checkpoints with something missing, what a killed save leaves, folders that cannot be written, disks that are really full."""

import logging
import os
import resource
import shutil
import traceback

import pytest

from hf_elm.trainers import checkpoint_folders
from hf_elm.trainers.checkpoint_folders import (
    CheckpointSaveError,
    broken_checkpoints,
    clear_leftovers,
    last_usable_checkpoint,
    why_unusable,
)
from hf_elm.trainers.residual_energy_trainer import ResidualEnergyTrainer
from tests.trainers.tiny_training import quiet_config, ragged_rows, tiny_model


def saving_trainer(folder, **fields):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, **fields}
    return ResidualEnergyTrainer(tiny_model(), quiet_config(folder, **options), train_dataset=ragged_rows(8))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    saving_trainer(folder).train()
    return folder


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def test_every_file_is_missed(run, tmp_path):
    files = sorted(
        path.relative_to(run / "checkpoint-4") for path in (run / "checkpoint-4").rglob("*") if path.is_file()
    )
    assert {"optimizer.pt", "rng_state.pth", "files.json", "training_args.bin"} <= {str(file) for file in files}
    for number, file in enumerate(files):
        folder = shutil.copytree(run / "checkpoint-4", tmp_path / str(number))
        (folder / file).unlink()
        expected = None if file.name == "files.json" else str(file)  # without the list only the main files are known
        assert (why_unusable(folder) is None) == (expected is None), file
        assert (expected or "") in (why_unusable(folder) or "")


def test_a_corrupt_last_checkpoint_is_passed_over_with_a_warning(copy, caplog):
    file = copy / "checkpoint-4" / "rng_state.pth"
    file.write_bytes(file.read_bytes()[:-7])
    ((folder, reason),) = broken_checkpoints(copy)
    assert folder.endswith("checkpoint-4")
    assert reason.startswith("rng_state.pth is corrupt")
    trainer = saving_trainer(copy, max_steps=5)
    logger = logging.getLogger("hf_elm.trainers.recorded_trainer")
    logger.addHandler(caplog.handler)
    try:
        trainer.train(resume_from_checkpoint=True)
    finally:
        logger.removeHandler(caplog.handler)
    assert "checkpoint-4 is passed over: rng_state.pth is corrupt" in caplog.text
    assert f"Resuming from {copy / 'checkpoint-2'}" in caplog.text
    assert trainer.state.global_step == 5
    assert broken_checkpoints(copy) == []


def test_leftovers_of_a_killed_save(copy):
    (copy / "checkpoint-2" / "trainer_state.json").unlink()
    shutil.copytree(copy / "checkpoint-4", copy / "replaced-checkpoint-2")
    shutil.copytree(copy / "checkpoint-4", copy / "replaced-checkpoint-4")
    (copy / ".saving-abc").mkdir()
    (copy / "checkpoint-4" / ".saving-abc").mkdir()
    clear_leftovers(copy)
    assert sorted(path.name for path in copy.iterdir()) == ["checkpoint-2", "checkpoint-4", "metrics.jsonl"]
    assert why_unusable(copy / "checkpoint-2") is None, "what had been set aside is back"
    assert why_unusable(copy / "checkpoint-4") is None
    assert not (copy / "checkpoint-4" / ".saving-abc").exists()


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch):
    trainer = saving_trainer(tmp_path)
    monkeypatch.setattr(checkpoint_folders.os, "access", lambda path, mode: str(path) != str(tmp_path))
    with pytest.raises(PermissionError, match=r"output_dir=.* cannot be written"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_files_that_cannot_grow_leave_the_older_checkpoint(copy):
    """RLIMIT_FSIZE in a child: the operating system itself refuses the writes of checkpoint-6, as on a full disk."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            trainer = saving_trainer(copy, max_steps=6)
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
            trainer.train(resume_from_checkpoint=True)
        except CheckpointSaveError as error:
            status = 7 if "checkpoint-6 could not be saved" in str(error) and "checkpoint-4" in str(error) else 2
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert sorted(path.name for path in copy.iterdir()) == ["checkpoint-2", "checkpoint-4", "metrics.jsonl"]
    assert last_usable_checkpoint(copy) == str(copy / "checkpoint-4")
