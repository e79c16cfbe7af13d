"""Run by torchrun in `test_sharded_training.py`: every family's model under torch's ``fully_shard``, trained and saved whole."""

import sys
from pathlib import Path

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard

from tests.trainers import tiny_masked_lm, tiny_training
from tests.trainers.two_rank_family_run import DTYPE, refined_model


STEPS, ROWS = 20, 8


def monarc_model():
    return tiny_training.tiny_model(dtype=DTYPE)


def thinking_model():
    return refined_model(DTYPE)


def masked_model():
    return tiny_masked_lm.tiny_model(dtype=DTYPE)


# family -> (model, the classes whose instances are sharded on their own; everything else belongs to the outermost group)
FAMILIES = {
    "monarc": (monarc_model, ("LlamaDecoderLayer", "BilinearEnergyHead")),  # as Accelerate does by _no_split_modules
    "nano_ebm": (thinking_model, ("Block",)),
    "m2_bert": (masked_model, ("M2BertLayer",)),
}


def batch_of(name: str) -> dict[str, torch.Tensor]:
    """``ROWS`` rows, the same in every process."""
    if name == "m2_bert":
        generator = torch.Generator().manual_seed(0)
        input_ids = torch.randint(97, 123, (ROWS, 12), generator=generator)
        labels = input_ids.masked_fill(torch.rand(ROWS, 12, generator=generator) < 0.7, -100)
        return {"input_ids": input_ids, "labels": labels}
    rows = tiny_training.ragged_rows(ROWS).with_format("torch")[:]
    rows = {key: torch.stack(list(value)) if isinstance(value, list) else value for key, value in rows.items()}
    return rows if name == "monarc" else {key: value for key, value in rows.items() if key != "negatives"}


def sharded(model, layers: tuple[str, ...]):
    """``model`` with its layers and then itself sharded over all ranks."""
    found = [module for module in model.modules() if type(module).__name__ in layers]
    assert {type(module).__name__ for module in found} == set(layers)
    for module in found:
        fully_shard(module)
    fully_shard(model)
    return model


def train(model, name: str, rank: int = 0, world: int = 1) -> list[float]:
    """Losses of ``STEPS`` AdamW steps, nats per target of the whole batch; rank r has every ``world``-th row from r on."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
    whole = batch_of(name)
    items = (whole["labels"] != -100).sum()
    mine = {key: value[rank::world] for key, value in whole.items()}
    losses = []
    model.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(**mine, num_items_in_batch=items).loss
        (loss * world).backward()  # gradients are averaged over ranks
        optimizer.step()
        total = loss.detach().clone()
        if world > 1:
            torch.distributed.all_reduce(total)
        losses.append(total.item())
    return losses


def main(folder: Path):
    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    losses = {}
    for name, (make, layers) in FAMILIES.items():
        model = sharded(make(), layers)
        own = sum(p.to_local().numel() for p in model.parameters())
        assert isinstance(model, FSDPModule)
        assert own < 0.6 * sum(p.numel() for p in model.parameters())
        losses[name] = train(model, name, rank, world)
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if rank == 0:
            model.save_pretrained(folder / name, state_dict=state)
        torch.distributed.barrier()
    if rank == 0:
        torch.save(losses, folder / "losses.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
