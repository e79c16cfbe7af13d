"""A tiny M2-BERT for masked language modelling, its tokenizer, ragged rows of ids, quiet arguments."""

import datasets
import torch

from hf_elm.modeling.m2_bert import M2BertConfig, M2BertForMaskedLM
from hf_elm.trainers.masked_lm_config import MaskedLMConfig
from hf_elm.trainers.tokenization import build_tokenizer


SEQ = 24
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "filter_order": 16}


def byte_tokenizer():
    """Bytes, then [PAD] 256, [CLS] 257, [SEP] 258, [MASK] 259."""
    return build_tokenizer("byte", encoder=True)


def tiny_model(seed=0, dtype=torch.float32, **fields):
    torch.manual_seed(seed)
    defaults = {"vocab_size": 260, "max_position_embeddings": 64, "hidden_dropout_prob": 0.0, "pad_token_id": 256}
    return M2BertForMaskedLM(M2BertConfig(**{**SIZES, **defaults, **fields})).to(dtype)


def ragged_rows(count, seq=SEQ, seed=0):
    """[CLS] some bytes [SEP], of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(count):
        body = torch.randint(97, 123, (seq - 2 - (index * 5) % (seq - 6),), generator=generator)
        rows.append({"input_ids": [257, *body.tolist(), 258]})
    return datasets.Dataset.from_list(rows)


def quiet_config(output_dir, **fields):
    """Three steps of four rows in order, constant learning rate, a log per step, nothing saved."""
    defaults = {
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "curves": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "optim": "adamw_torch",
    }
    return MaskedLMConfig(output_dir=str(output_dir), **{**defaults, **fields})
