"""Training from a stream: a resumed run is the uninterrupted one, also when SIGTERM ended it or there is nothing left to do."""

import os
import signal

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from hf_elm.trainers.residual_energy_trainer import ResidualEnergyTrainer
from hf_elm.trainers.termination import EXIT_STATUS, TrainingTerminated
from hf_elm.trainers.tokenization import build_tokenizer
from tests.trainers.tiny_training import quiet_config, ragged_rows, tiny_model


STEPS = 7


class Recording(ResidualEnergyTrainer):
    """Remembers the tokens of every batch that it trained on."""

    def __init__(self, *args, **kwargs):
        self.batches = []
        super().__init__(*args, **kwargs)

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.batches.append(inputs["input_ids"].tolist())
        return super().training_step(model, inputs, num_items_in_batch)


def trainer_of(folder, rows=None, model=None, callbacks=None, **fields):
    rows = ragged_rows(11).to_iterable_dataset(num_shards=2) if rows is None else rows
    defaults = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2}
    args = quiet_config(folder, **{**defaults, "per_device_train_batch_size": 2, **fields})
    return Recording(model or tiny_model(), args, train_dataset=rows, callbacks=callbacks)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    trainer = trainer_of(tmp_path_factory.mktemp("whole"))
    trainer.train()
    return trainer


def assert_same_end(trainer, whole, since):
    for (name, value), expected in zip(
        trainer.model.state_dict().items(), whole.model.state_dict().values(), strict=True
    ):
        assert torch.equal(value, expected), name
    assert trainer.state.global_step == STEPS
    old = {log["step"]: log for log in whole.state.log_history if "loss" in log}
    for log in (log for log in trainer.state.log_history if "loss" in log and log["step"] > since):
        assert {name: log[name] for name in ("loss", "epoch", "grad_norm")} == {
            name: old[log["step"]][name] for name in ("loss", "epoch", "grad_norm")
        }


def test_resumed_run_is_the_uninterrupted_one(tmp_path, whole):
    trainer_of(tmp_path, max_steps=3, lr_scheduler_type="constant").train()
    resumed = trainer_of(tmp_path, model=tiny_model(seed=1))
    resumed.train(resume_from_checkpoint=True)
    assert resumed.batches == whole.batches[2 * 3 :]
    assert_same_end(resumed, whole, since=3)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_finished_run_takes_no_further_step(tmp_path, streamed):
    rows = ragged_rows(11).to_iterable_dataset() if streamed else ragged_rows(11)
    trainer_of(tmp_path, rows, max_steps=3).train()
    again = trainer_of(tmp_path, rows, model=tiny_model(seed=1), max_steps=3)
    again.train(resume_from_checkpoint=True)
    assert (again.state.global_step, again.batches) == (3, [])


def test_a_stream_can_be_begun_again(tmp_path, whole):
    trainer_of(tmp_path, max_steps=3).train()
    (tmp_path / "checkpoint-3" / "stream_state_0.pt").unlink()
    (tmp_path / "checkpoint-3" / "files.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-3 does not say where in the stream.*ignore_data_skip=True"):
        trainer_of(tmp_path).train(resume_from_checkpoint=True)
    again = trainer_of(tmp_path, ignore_data_skip=True)
    again.train(resume_from_checkpoint=True)
    assert again.batches == whole.batches[: 2 * (STEPS - 3)]


class SigtermAt(TrainerCallback):
    """Sends SIGTERM to this process after the first batch of optimizer step ``step``."""

    def __init__(self, step):
        self.step = step

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_and_exits(tmp_path, whole, capsys):
    """Within step 5, between two checkpoints; the handler of before is in place again."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingTerminated) as caught:
        trainer_of(tmp_path, callbacks=[SigtermAt(5)]).train()
    assert caught.value.code == EXIT_STATUS == 143
    assert f"SIGTERM at step 5: saved {tmp_path / 'checkpoint-5'}; exit status 143" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
    resumed = trainer_of(tmp_path, model=tiny_model(seed=1))
    resumed.train(resume_from_checkpoint=True)
    assert resumed.batches == whole.batches[2 * 5 :]
    assert_same_end(resumed, whole, since=5)


def test_text_streams_resume_within_a_document(tmp_path):
    """Packed by the trainer; the documents are longer than a row."""
    texts = Dataset.from_dict({"text": [f"{number} " * 9 for number in range(10, 22)]})

    def trainer(**fields):
        options = {"max_length": 24, "max_steps": 5, "save_strategy": "steps", "save_steps": 2, **fields}
        model = tiny_model()
        model.resize_token_embeddings(260)
        args = quiet_config(tmp_path, **options)
        tokenizer = build_tokenizer("byte")
        return Recording(model, args, train_dataset=texts.to_iterable_dataset(), processing_class=tokenizer)

    full = trainer(save_strategy="no")
    full.train()
    trainer(max_steps=2).train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=True)
    assert resumed.batches == full.batches[2:]
    assert (2 * 4 * 24) % len("10 " * 9 + "$"), "the cut is within a document"
