"""Tiny nanoEBM models in float64 with a byte tokenizer."""

from functools import lru_cache

from hf_elm.trainers.tokenization import build_tokenizer
from tests.modeling.nano_ebm.tiny_nano_ebm import tiny_nano_ebm


PROMPT = "def $x(\n"
CONFIGS = {
    "default": {},
    "published": {"energy_type": "linear", "geometry": "logits", "grad_reduction": "mean", "entropy_weight": 0.0, "think_lr": 50.0},
    "units only": {"energy_heads": 0, "energy_units": 24},
    "temperature": {"softmax_temperature": 1.3, "entropy_weight": 0.7, "think_lr": 0.5},
    "tokens' mean energy": {"mixture_stopgrad": False, "think_lr": 0.2},
    "soft tokens": {"use_soft_tokens": True, "think_lr": 0.5},
}  # fmt: skip


@lru_cache
def byte_tokenizer():
    return build_tokenizer("byte")


def tiny_model(seed=0, **fields):
    return tiny_nano_ebm(seed, vocab_size=len(byte_tokenizer()), **fields)
