"""A training run that is killed again and again: ``python -m tests.trainers.killed_run FOLDER KILLS STEPS streamed|stored``.

Each start is a fork of this process, which has imported everything: it costs a fraction of a second. A child tells its parent
by one byte of each step and, once it trains, of each file operation in its folder; the parent kills it (SIGKILL) after a drawn number of them, and
a drawn moment later. Prints a JSON object, see `main`.
"""

import json
import mmap
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from transformers import TrainerCallback

from hf_elm.trainers.checkpoint_folders import last_usable_checkpoint
from hf_elm.trainers.residual_energy_trainer import ResidualEnergyTrainer
from tests.trainers.tiny_training import quiet_config, ragged_rows, tiny_model


MOST_EVENTS = 150  # two steps and a checkpoint give more than 40
WATCHED = (
    "open",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "shutil.rmtree",
)  # audit events of the interpreter


class Watched(ResidualEnergyTrainer):
    """Says in ``flag[0]`` whether it is saving a checkpoint."""

    flag: mmap.mmap

    def _save_checkpoint(self, model, trial):
        self.flag[0] = 1
        super()._save_checkpoint(model, trial)
        self.flag[0] = 0


class Steps(TrainerCallback):
    def __init__(self, tell):
        self.tell = tell

    def on_step_begin(self, *args, **kwargs):
        self.tell()

    on_pre_optimizer_step = on_step_end = on_step_begin


def train(folder, steps, streamed, checkpoint, flag=None, tell=lambda: None):
    """The run, from ``checkpoint`` on."""
    torch.set_num_threads(1)
    rows = ragged_rows(9)
    rows = rows.to_iterable_dataset(num_shards=2) if streamed else rows
    args = quiet_config(
        folder,
        max_steps=steps,
        per_device_train_batch_size=2,
        learning_rate=1e-5,  # small: with given negatives the energy has no floor
        save_strategy="steps",
        save_steps=2,
        save_total_limit=2,
        train_sampling_strategy="random",
    )
    trainer = Watched(tiny_model(), args, train_dataset=rows, callbacks=[Steps(tell)])
    trainer.flag = flag if flag is not None else mmap.mmap(-1, 1)
    trainer.train(resume_from_checkpoint=checkpoint and True)
    trainer.save_model()


def start(folder, steps, streamed, flag):
    """Forks a run; its process id and the file descriptor of its events."""
    events, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, events
    try:
        os.close(events)
        log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)

        started = []

        def step():
            started.append(True)
            os.write(write, b".")

        def hook(event, arguments):
            if started and event in WATCHED and str(arguments[0]).startswith(str(folder)):
                os.write(write, b".")

        sys.addaudithook(hook)
        train(folder, steps, streamed, last_usable_checkpoint(folder), flag, step)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def main(folder: Path, kills: int, steps: int, streamed: bool) -> dict:
    """``kills``, those ``while_saving``, and ``resumed_from``: the step at which each start went on (0 = afresh)."""
    draws, flag = random.Random(0), mmap.mmap(-1, 1)
    counts = {"kills": 0, "while_saving": 0, "resumed_from": []}
    while True:
        last = last_usable_checkpoint(folder)
        counts["resumed_from"].append(int(last.rpartition("-")[2]) if last else 0)
        flag[0] = 0
        child, events = start(folder, steps, streamed, flag)
        if counts["kills"] < kills:
            left = draws.randint(1, MOST_EVENTS)
            while left and os.read(events, 1):
                left -= 1
            time.sleep(draws.uniform(0, 0.004))
            os.kill(child, signal.SIGKILL)
        else:
            while os.read(events, 4096):
                pass
        os.close(events)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            return counts
        if status != -signal.SIGKILL:
            raise RuntimeError(f"a child failed with status {status}: {Path(f'{folder}.log').read_text()[-4000:]}")
        counts["kills"] += 1
        counts["while_saving"] += flag[0]


if __name__ == "__main__":
    out, kills, steps, kind = sys.argv[1:]
    print(json.dumps(main(Path(out), int(kills), int(steps), kind == "streamed")))  # noqa: T201
