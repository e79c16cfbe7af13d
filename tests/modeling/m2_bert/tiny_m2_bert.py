"""Tiny M2-BERT models, batches, and the O(length^2) float64 oracle of the encoder, written from the published equations."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from hf_elm.modeling.m2_bert import M2BertConfig, M2BertForMaskedLM, M2BertModel
from hf_elm.modeling.m2_bert.reference_keys import convert_state, infer_fields, plain_names


FIXTURES = Path(__file__).parents[2] / "fixtures" / "m2_bert"
RECORDED = ("tiny_resid_128", "tiny_noresid_128", "tiny_additions_odd")
VOCAB = 96
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "filter_order": 16, "vocab_size": VOCAB}


def tiny_config(**fields):
    return M2BertConfig(**{**SIZES, "max_position_embeddings": 64, "hidden_dropout_prob": 0.0, **fields})


def tiny_model(cls=M2BertModel, seed=0, dtype=torch.float32, spread=0.2, **fields):
    """A model in eval mode with every parameter random, biases and norms included."""
    torch.manual_seed(seed)
    return scatter(cls(tiny_config(**fields)), spread).to(dtype).eval()


@torch.no_grad()
def scatter(model, spread=0.2):
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * spread)
    return model


def tokens(*shape, seed=0, low=1):
    return torch.randint(low, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def padded(ids, length, side="right"):
    """One row ``(seq,)`` padded with 0 to ``length``, and its mask."""
    missing = length - len(ids)
    pad = (0, missing) if side == "right" else (missing, 0)
    return F.pad(ids, pad)[None], F.pad(torch.ones_like(ids), pad)[None]


def recorded(name):
    """Config in the original's spelling, weights by the original's names, recorded inputs and outputs."""
    config = json.loads((FIXTURES / name / "config.json").read_text())
    state = load_file(FIXTURES / name / "model.safetensors")
    state = {key.removeprefix("__seqcls__."): tensor for key, tensor in state.items()}
    return config, state, load_file(FIXTURES / name / "io.safetensors")


def recorded_model(name, cls=M2BertForMaskedLM, dtype=torch.float32, **fields):
    config, state, _ = recorded(name)
    state = plain_names(state)
    inferred = infer_fields(state, config)
    weights, left = convert_state(state, inferred, stored_decay=False)
    assert not left
    model = cls(M2BertConfig(**{**inferred, "pad_to_length": 0, **fields}))
    prefix = "m2_bert." if cls is M2BertModel else ""
    own = {key.removeprefix(prefix): tensor for key, tensor in weights.items()}
    model.load_state_dict({key: own[key] for key in model.state_dict()})
    return model.to(dtype).eval()


# ---------------------------------------------------------------------- the oracle: no FFT, dense matrices, token-first


def dense_convolution(x, taps):
    """x ``(batch, channels, seq)``, taps ``(directions, channels, seq)``: one Toeplitz matrix per channel."""
    seq = x.shape[-1]
    matrix = torch.zeros(x.shape[1], seq, seq, dtype=x.dtype)
    for i in range(seq):
        for j in range(seq):
            if j <= i:
                matrix[:, i, j] = taps[0][:, i - j]
            elif len(taps) == 2:
                matrix[:, i, j] = taps[1][:, j - i - 1]
    return torch.einsum("cij,bcj->bci", matrix, x)


def oracle_mixer(mixer, u, mask=None):
    """u ``(batch, seq, hidden)``, mask ``(batch, seq)``."""
    if mixer.norm is not None:
        u = mixer.norm(u)
    seq = u.shape[1]
    m = 1.0 if mask is None else mask[:, None, :].to(u.dtype)
    p = F.pad(mixer.in_proj(u).transpose(1, 2) * m, (2, 0))
    weight, bias = mixer.short_conv()
    p = sum(weight[:, i, None] * p[..., i : i + seq] for i in range(3)) + bias[:, None]
    x1, x2, v = p.split(u.shape[2], 1)
    y = x2 * dense_convolution(x1 * v * m, mixer.gated_filter(seq)[:])
    if mixer.residual_filter is not None:
        y = y + dense_convolution(u.transpose(1, 2) * m, mixer.residual_filter(seq)[:])
    return mixer.out_proj(y.transpose(1, 2))


def oracle_linear(layer, x):
    blocks, _, columns = layer.weight.shape
    x = F.pad(x, (0, blocks * columns - x.shape[-1]))
    y = (x @ torch.block_diag(*layer.weight).T)[..., : layer.out_features]
    return y if layer.bias is None else y + layer.bias


def oracle_mlp(mlp, x):
    h = oracle_linear(mlp.up, x)
    if mlp.gated:
        a, b = h.chunk(2, -1)
        h = F.gelu(a) * b
    else:
        h = F.gelu(h)
    return mlp.norm(oracle_linear(mlp.down, h) + x)
