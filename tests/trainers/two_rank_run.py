"""Run by torchrun in `test_two_processes.py`: trains and evaluates the tiny model, the main process saves what it saw."""

import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from hf_elm.trainers.finite_guard import NonFiniteError
from hf_elm.trainers.residual_energy_trainer import ResidualEnergyTrainer
from tests.trainers.tiny_training import quiet_config, ragged_rows, tiny_model


class PoisonRankOne(TrainerCallback):
    """The energy of rank 1 alone becomes infinite before step 2."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 1 and args.process_index == 1:
            with torch.no_grad():
                model.energy_head.token_proj.bias.fill_(float("inf"))


def run(output_dir: Path, batch: int, accumulation: int) -> dict:
    """Weights, logs and evaluation of two steps on 16 ragged rows (per process ``batch`` x ``accumulation``); 5 rows held out."""
    args = quiet_config(
        output_dir,
        max_steps=2,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        per_device_eval_batch_size=2,
        optim="sgd",
    )
    rows = ragged_rows(16)
    trainer = ResidualEnergyTrainer(
        tiny_model(dtype=torch.float64), args, train_dataset=rows, eval_dataset=ragged_rows(5, seed=1)
    )
    trainer.train()
    metrics = trainer.evaluate()
    return {
        "weights": trainer.model.state_dict(),
        "logs": [log for log in trainer.state.log_history if "loss" in log],
        "eval": metrics,
        "tokens": trainer.state.num_input_tokens_seen,
    }


def stopped_at(output_dir: Path) -> tuple[int, str]:
    """(step, term) of the `NonFiniteError` that every rank must raise when one of them goes wrong."""
    args = quiet_config(output_dir, max_steps=4, logging_steps=3, metrics_file=None)
    trainer = ResidualEnergyTrainer(tiny_model(), args, train_dataset=ragged_rows(16), callbacks=[PoisonRankOne()])
    try:
        trainer.train()
    except NonFiniteError as error:
        return error.step, error.term
    return None


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    result = run(out / "two", batch=2, accumulation=2)
    rank = torch.distributed.get_rank()
    result["stopped_at"] = stopped_at(out / "stopped")
    torch.save(result, out / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()
