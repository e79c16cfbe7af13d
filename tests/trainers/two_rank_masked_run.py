"""Run by torchrun in `test_two_masked_processes.py`: masked language modelling; the main process saves what it saw."""

import sys
from pathlib import Path

import torch

from hf_elm.trainers.masked_lm_trainer import MaskedLMTrainer
from tests.trainers.tiny_masked_lm import byte_tokenizer, quiet_config, ragged_rows, tiny_model


class Recording(MaskedLMTrainer):
    """Remembers (step, labels) of each row of this rank."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training:
            rows = [(self.state.global_step, tuple(row[row != -100].tolist())) for row in inputs["labels"]]
            self.__dict__.setdefault("seen", []).extend(rows)
        return super().compute_loss(model, inputs, *args, **kwargs)


def run(output_dir: Path, batch: int, accumulation: int) -> dict:
    """Weights, logs, masks and evaluation of two steps on 16 rows (per process ``batch`` x ``accumulation``); 5 rows held out."""
    args = quiet_config(
        output_dir,
        max_steps=2,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        per_device_eval_batch_size=2,
        optim="sgd",
    )
    model = tiny_model(dtype=torch.float64)
    trainer = Recording(model, args, ragged_rows(16), ragged_rows(5, seed=1), byte_tokenizer())
    trainer.train()
    metrics = trainer.evaluate()
    return {
        "weights": trainer.model.state_dict(),
        "logs": [log for log in trainer.state.log_history if "loss" in log],
        "eval": metrics,
        "tokens": trainer.state.num_input_tokens_seen,
        "seen": trainer.seen,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    result = run(out / "two", batch=2, accumulation=2)
    torch.save(result, out / f"rank{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
