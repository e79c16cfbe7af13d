"""Run by torchrun in `test_two_family_processes.py`: every trainer over the same rows, on two ranks or one."""

import sys
from pathlib import Path

import torch

from hf_elm.modeling.nano_ebm import NanoEBMConfig, NanoEBMForRefinement
from hf_elm.trainers.masked_lm_trainer import MaskedLMTrainer
from hf_elm.trainers.refinement_config import RefinementConfig
from hf_elm.trainers.refinement_trainer import RefinementTrainer
from hf_elm.trainers.residual_energy_trainer import ResidualEnergyTrainer
from hf_elm.trainers.retrieval_pairs import pairs_of_rows
from hf_elm.trainers.retrieval_trainer import RetrievalTrainer
from tests.trainers import tiny_masked_lm, tiny_retrieval, tiny_training


STEPS = 20
ROWS = 8  # of an optimizer step
# Adam divides by the size of the gradient: in float32 it turns the rounding of gradients that are zero (the biases of attention
# keys) into steps of full length.
DTYPE = torch.float64
QUIET = {
    "lr_scheduler_type": "constant",
    "train_sampling_strategy": "sequential",
    "logging_steps": 1,
    "save_strategy": "no",
    "curves": False,
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "optim": "adamw_torch",
}


def refined_model(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
    return NanoEBMForRefinement(NanoEBMConfig(vocab_size=tiny_training.VOCAB, think_steps=2, **sizes)).to(dtype)


def residual_energy(out, steps, **sizes):
    # given negatives: drawn ones differ from rank to rank on purpose
    args = tiny_training.quiet_config(out, max_steps=steps, **sizes)
    return ResidualEnergyTrainer(tiny_training.tiny_model(dtype=DTYPE), args, tiny_training.ragged_rows(ROWS * 2))


def masked_lm(out, steps, **sizes):
    args = tiny_masked_lm.quiet_config(out, max_steps=steps, learning_rate=1e-3, **sizes)
    rows = tiny_masked_lm.ragged_rows(ROWS * 2)
    return MaskedLMTrainer(
        tiny_masked_lm.tiny_model(dtype=DTYPE), args, rows, processing_class=tiny_masked_lm.byte_tokenizer()
    )


def refinement(out, steps, **sizes):
    fields = QUIET | {"max_steps": steps, "learning_rate": 1e-3} | sizes
    rows = tiny_training.ragged_rows(ROWS * 2).remove_columns("negatives")
    return RefinementTrainer(refined_model(DTYPE), RefinementConfig(output_dir=str(out), **fields), rows)


def retrieval(out, steps, **sizes):
    args = tiny_retrieval.quiet_retrieval_config(out, max_steps=steps, **sizes)
    pairs = pairs_of_rows(tiny_retrieval.ROWS[:ROWS], "train_dataset")
    return RetrievalTrainer(
        tiny_retrieval.tiny_embedder(hidden_dropout_prob=0.0).to(DTYPE),
        args,
        pairs,
        processing_class=tiny_retrieval.tokenizer(),
    )


TRAINERS = {
    "residual_energy": residual_energy,
    "masked_lm": masked_lm,
    "refinement": refinement,
    "retrieval": retrieval,
}


def run(name: str, out: Path, batch: int, accumulation: int, steps: int = STEPS) -> dict:
    """Weights, losses and gradient norms of ``steps`` AdamW steps; per process ``batch`` x ``accumulation`` rows."""
    trainer = TRAINERS[name](
        out / name, steps, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    return {
        "weights": {key: value.clone() for key, value in trainer.model.state_dict().items()},
        "losses": [float(log["loss"]) for log in logs],
        "grad_norms": [float(log["grad_norm"]) for log in logs],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    results = {name: run(name, folder / "two", batch=2, accumulation=2) for name in TRAINERS}
    torch.save(results, folder / f"rank{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
