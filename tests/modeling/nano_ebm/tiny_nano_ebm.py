"""Tiny nanoEBM models with every weight random, batches, and energies written out term by term."""

import torch

from hf_elm.modeling.nano_ebm import NanoEBMConfig, NanoEBMForRefinement
from hf_elm.modeling.nano_ebm.attention_layout import attention_layout
from hf_elm.modeling.nano_ebm.free_energy import FreeEnergyTerms, linear_field


VOCAB = 64
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
}
TEXT_CONFIG = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
}


def tiny_nano_ebm(seed=0, dtype=torch.float64, spread=0.15, **fields):
    """A model in eval mode with every parameter random (std ``spread`` added), the zero-initialised ones included."""
    torch.manual_seed(seed)
    model = NanoEBMForRefinement(NanoEBMConfig(**(SIZES | fields)))
    return scatter(model, spread).to(dtype).eval()


@torch.no_grad()
def scatter(model, spread=0.15):
    for name, parameter in model.named_parameters():
        if name != "step_sizes.raw":
            parameter.add_(torch.randn_like(parameter) * spread)
    return model


def tokens(*shape, seed=0, low=2, high=VOCAB):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def random_field(
    scale=1.0, seed=0, batch=2, seq=7, hidden=16, vocab=33, units=24, heads=4, linear=False, bias=False, **terms_options
):  # fmt: skip
    """(field, logits) of random weights of size ``scale``, float64, causal memory."""
    torch.manual_seed(seed)
    readout = torch.nn.Linear(hidden, vocab, bias=bias).double()
    terms = FreeEnergyTerms(hidden, units, heads, **terms_options).double()
    with torch.no_grad():
        for parameter in (*readout.parameters(), *terms.parameters()):
            parameter.copy_(scale * torch.randn_like(parameter)).requires_grad_(False)
    states = torch.randn(batch, seq, hidden, dtype=torch.float64)
    logits = torch.randn(batch, seq, vocab, dtype=torch.float64) * 2
    if linear:
        return linear_field(states, readout), logits
    ids = torch.randint(vocab, (batch, seq))
    memories = terms.memories(states, readout.weight[ids]) if heads else None
    recent = terms.recent(memories, attention_layout(ids), slice(None))
    return terms.field(states, memories, None, True, readout, recent), logits
