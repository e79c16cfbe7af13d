"""Trains a model with torch's own FSDP2 (`fully_shard`), without a Trainer, and saves a checkpoint that loads anywhere.

    torchrun --nproc_per_node 2 examples/fsdp2_training.py OUT [--steps 20]

Layers are sharded one by one; what remains (embeddings, output head, energy) is the outermost group, because the losses read
the head's weight outside its own forward pass. Runs on GPUs (nccl) and CPUs (gloo).
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

from hf_elm.modeling.monarc import MonArcConfig, MonArcForCausalLM


def build(device) -> MonArcForCausalLM:
    """A new model on ``device``, the same on every rank, sharded."""
    torch.manual_seed(0)
    model = MonArcForCausalLM(MonArcConfig.preset("tiny", vocab_size=258, max_position_embeddings=128)).to(device)
    for layer in model.get_decoder().layers:
        fully_shard(layer)
    return fully_shard(model)


def batch(step: int, rank: int, device) -> torch.Tensor:
    """Rows of this rank; replace by your own data. Here: counting upwards from a random byte, which is soon learnt."""
    generator = torch.Generator().manual_seed(step * 1000 + rank)
    first = torch.randint(0, 256, (8, 1), generator=generator)
    return ((first + torch.arange(64)) % 256).to(device)


def main() -> None:
    """Trains, prints the mean loss of all ranks in nats/token, saves on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo")
    rank, device = (
        dist.get_rank(),
        torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu"),
    )
    if on_gpu:
        torch.cuda.set_device(device)
    if os.path.exists(arguments.out):
        raise SystemExit(f"{arguments.out} exists; choose another folder.")
    dist.barrier()  # nobody writes before everybody has looked
    model = build(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = torch.Generator(device).manual_seed(rank)  # every rank draws its own negatives
    for step in range(arguments.steps):
        input_ids = batch(step, rank, device)
        loss = model.train()(input_ids, labels=input_ids, generator=generator).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        dist.all_reduce(mean := loss.detach() / dist.get_world_size())
        if rank == 0:
            print(f"step {step + 1}: {mean.item():.4f} nats/token")
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        model.save_pretrained(arguments.out, state_dict=state)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
