"""A tiny MonArc model over bytes in float64, rows of text, and every energy of its vocabulary the long way."""

from functools import lru_cache

import torch

from hf_elm.trainers.tokenization import build_tokenizer
from tests.hf_elm.tiny_evaluation import make_model


TEXT = "def f(x):\n\treturn '<b>' & \"日é\" # $x$\n"


@lru_cache
def tokenizer_of(kind):
    """A tokenizer of that kind whose vocabulary knows `TEXT`."""
    texts = {"byte": None, "char": [TEXT], "bpe": [TEXT, "return for in def and x " * 30]}[kind]
    return build_tokenizer(kind, texts, vocab_size=270 if kind == "bpe" else None)


@lru_cache
def energy_model(kind="byte", **fields):
    return make_model(len(tokenizer_of(kind)), **fields)


@torch.no_grad()
def brute_force(model, ids):
    """log p_LM, E ``(seq - 1, vocab)`` and log Z ``(seq - 1)`` of every token in every place after the first."""
    log_probs = model(ids.unsqueeze(0)).logits[0, :-1].log_softmax(-1)
    energies = torch.zeros_like(log_probs)
    for place in range(1, len(ids)):
        for token in range(log_probs.shape[1]):
            changed = torch.cat([ids[:place], torch.tensor([token])])
            energies[place - 1, token] = model(changed.unsqueeze(0), output_energies=True).energies[0, -1]
    return log_probs, energies, (log_probs - energies).logsumexp(-1)
