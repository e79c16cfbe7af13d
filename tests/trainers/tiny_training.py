"""A tiny MonArc model, rows of token ids and quiet arguments, for the tests of the trainers."""

import datasets
import torch

from hf_elm.modeling.monarc import MonArcConfig, MonArcForCausalLM
from hf_elm.trainers.residual_energy_config import ResidualEnergyConfig


VOCAB = 64
TINY_LM = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
}


def tiny_model(seed=0, dtype=torch.float32, spread=0.3, **fields):
    """Random weights, the zero-initialised ones of the energy included (std ``spread``)."""
    torch.manual_seed(seed)
    model = MonArcForCausalLM(MonArcConfig(text_config=dict(TINY_LM), **fields))
    with torch.no_grad():
        for p in model.energy_parameters():
            if not p.any():
                p.normal_(std=spread)
    return model.to(dtype)


def ragged_rows(count, seq=12, num_negatives=1, seed=0):
    """Two packed documents per row, between 2 and seq - 2 targets, given negatives."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(count):
        input_ids = torch.randint(2, VOCAB, (seq,), generator=generator)
        segment_ids = (torch.arange(seq) >= 3 + index % 5).long()
        labels = input_ids.clone()
        labels[seq - (index * 3) % (seq - 6) :] = -100
        negatives = torch.randint(2, VOCAB, (num_negatives, seq), generator=generator)
        row = {"input_ids": input_ids, "labels": labels, "segment_ids": segment_ids, "negatives": negatives}
        rows.append({name: value.tolist() for name, value in row.items()})
    return datasets.Dataset.from_list(rows)


def quiet_config(output_dir, **fields):
    """Three steps of four rows in order, constant learning rate, a log per step, nothing saved."""
    defaults = {
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
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
    return ResidualEnergyConfig(output_dir=str(output_dir), **{**defaults, **fields})
