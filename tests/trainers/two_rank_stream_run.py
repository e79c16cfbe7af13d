"""Run by torchrun in `test_two_stream_processes.py`: trains on a stream, and again from a checkpoint in the middle."""

import os
import signal
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from hf_elm.trainers.residual_energy_trainer import ResidualEnergyTrainer
from hf_elm.trainers.termination import TrainingTerminated
from tests.trainers.tiny_training import quiet_config, ragged_rows, tiny_model


class Recording(ResidualEnergyTrainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        self.__dict__.setdefault("batches", []).append(inputs["input_ids"].tolist())
        return super().training_step(model, inputs, num_items_in_batch)


class SigtermOnRankOne(TrainerCallback):
    """In step 3, to rank 1 alone."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2 and args.process_index == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def trainer_of(folder, callbacks=None):
    rows = ragged_rows(7).to_iterable_dataset(num_shards=2)  # 4 and 3 rows: the ranks' epochs differ
    args = quiet_config(folder, max_steps=6, per_device_train_batch_size=2, save_strategy="steps", save_steps=5)
    return Recording(tiny_model(), args, train_dataset=rows, callbacks=callbacks)


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    whole, stopped, resumed = (trainer_of(out / "whole"), trainer_of(out / "cut", [SigtermOnRankOne()]), None)
    whole.train()
    status = 0
    try:
        stopped.train()
    except TrainingTerminated as error:
        status = error.code
    resumed = trainer_of(out / "cut")
    resumed.train(resume_from_checkpoint=True)
    result = {
        "status": status,
        "batches": {"whole": whole.batches, "stopped": stopped.batches, "resumed": resumed.batches},
        "weights": {"whole": whole.model.state_dict(), "resumed": resumed.model.state_dict()},
    }
    torch.save(result, out / f"rank{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
