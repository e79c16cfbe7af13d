"""Tiny models over bytes or letters, saved as folders, and the requests of the evaluation harness."""

import string
from types import SimpleNamespace

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_elm import MonArcConfig, MonArcForCausalLM
from hf_elm.modeling.nano_ebm import NanoEBMConfig, NanoEBMForRefinement
from hf_elm.trainers.tokenization import build_tokenizer


POSITIONS = 64


def letters():
    """A tokenizer of single characters, a vocabulary of 64."""
    characters = string.ascii_letters + string.digits + " .,\n"
    tokenizer = build_tokenizer("char", [characters])
    while len(tokenizer) > 64:
        characters = characters[1:]
        tokenizer = build_tokenizer("char", [characters])
    assert len(tokenizer) == 64
    return tokenizer


def monarc(tokenizer, spread=0.3, dtype=torch.float64, **fields):
    """Random energies; a zero-initialised head would hide errors."""
    torch.manual_seed(0)
    text_config = {
        "model_type": "stablelm",
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = MonArcForCausalLM(MonArcConfig(text_config=text_config, **fields))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(40)
        for parameter in model.energy_parameters():
            parameter.add_(torch.randn_like(parameter) * spread)
    return model.to(dtype).eval()


def nano_ebm(tokenizer, dtype=torch.float64):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": POSITIONS}
    model = NanoEBMForRefinement(NanoEBMConfig(vocab_size=len(tokenizer), **shape))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "step_sizes.raw":
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype).eval()


def gpt2(tokenizer):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=POSITIONS)
    return GPT2LMHeadModel(config).eval()


def saved(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def request(*arguments):
    return SimpleNamespace(args=arguments)
