"""Trains a model with torch's own FSDP2 (`fully_shard`), without a Trainer, and saves a checkpoint that loads anywhere.

    torchrun --nproc_per_node 2 examples/fsdp2_training.py --output_dir runs/sharded [--smoke]

Layers are sharded one by one; what remains (embeddings, output head, energy) is the outermost group, because the losses read
the head's weight outside its own forward pass. Runs on GPUs (nccl) and CPUs (gloo). The rows count upwards from a random byte.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["hf_elm"]
# [tool.uv.sources]
# hf_elm = { path = ".." }
# ///

import argparse
import os

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

from hf_elm import MonArcConfig, MonArcForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", default="runs/sharded")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if os.path.exists(options.output_dir):
        raise SystemExit(f"--output_dir {options.output_dir} exists; choose another folder.")
    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo")
    rank, device = dist.get_rank(), torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if on_gpu else "cpu")
    torch.manual_seed(0)  # the same new model on every rank
    model = MonArcForCausalLM(MonArcConfig.preset("tiny", vocab_size=258, max_position_embeddings=128)).to(device)
    for layer in model.get_decoder().layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    negatives = torch.Generator(device).manual_seed(rank)  # every rank draws its own
    for step in range(8 if options.smoke else 200):
        rows = torch.Generator().manual_seed(step * 1000 + rank)  # of this rank; replace by your own data
        input_ids = ((torch.randint(0, 256, (8, 1), generator=rows) + torch.arange(64)) % 256).to(device)
        loss = model.train()(input_ids, labels=input_ids, generator=negatives).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(), optimizer.zero_grad()
        dist.all_reduce(mean := loss.detach() / dist.get_world_size())
        print(f"step {step + 1}: {mean.item():.4f} nats/token\n" * (rank == 0), end="")
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:  # whoever writes has trained with the others, so that all have looked whether the folder exists
        model.save_pretrained(options.output_dir, state_dict=state)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
