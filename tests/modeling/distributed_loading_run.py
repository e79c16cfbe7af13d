"""Run by torchrun in `test_parallel_plans.py`: models loaded by transformers in shards, their outputs and gradients."""

import sys
from pathlib import Path

import torch
from transformers.distributed import DistributedConfig

from tests.modeling.test_parallel_plans import CASES, batch_of, gradients, loss_of


def main(folder: Path):
    rank, results = None, {}
    for name, (make, kinds) in CASES.items():
        for kind in kinds:
            model_class = type(make())
            config = DistributedConfig(**{f"{kind}_size": 2})
            model = model_class.from_pretrained(folder / name, distributed_config=config, dtype=torch.float64).train()
            rank = torch.distributed.get_rank()
            local = sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in model.parameters())
            loss = loss_of(model, batch_of(name))
            loss.backward()
            results[name, kind] = {
                "loss": loss.item(),
                "local": local,
                "gradients": gradients(model),
            }
            model.save_pretrained(folder / f"{name}-{kind}-again")
    torch.save(results, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
