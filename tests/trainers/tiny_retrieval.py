"""A tiny embedding model, pairs and quiet arguments, for the tests of retrieval."""

import torch

from hf_elm.modeling.m2_bert import M2BertConfig
from hf_elm.modeling.m2_bert.modeling_m2_bert import M2BertForSentenceEmbedding
from hf_elm.trainers.retrieval_config import RetrievalConfig
from hf_elm.trainers.tokenization import build_tokenizer


SUBJECTS = [
    "cat",
    "house",
    "river",
    "engine",
    "violin",
    "harbour",
    "garden",
    "letter",
    "winter",
    "bridge",
    "lamp",
    "coin",
]
ROWS = [
    {
        "query": f"where is the {name}?",
        "positive": f"the {name} is in place {index} " + "x" * (3 * index % 7),
        "negatives": [f"nothing {index} {other}" for other in range(index % 3 + 1)],
    }
    for index, name in enumerate(SUBJECTS)
]


def tokenizer():
    return build_tokenizer("byte")


def tiny_embedder(seed=0, **fields):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "filter_order": 8}
    sizes |= {"max_position_embeddings": 64, "pooling": "mean", "vocab_size": 258, "pad_token_id": 257}
    return M2BertForSentenceEmbedding(M2BertConfig(**(sizes | fields)))


def quiet_retrieval_config(output_dir, **fields):
    """Three steps of four queries in order, constant learning rate, a log per step, nothing saved."""
    defaults = {
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "negatives_per_query": 3,
        "max_length": 48,
        "learning_rate": 1e-3,
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
    return RetrievalConfig(output_dir=str(output_dir), **{**defaults, **fields})
