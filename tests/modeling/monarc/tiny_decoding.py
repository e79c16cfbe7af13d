"""Tiny models and prompts for the tests of candidate decoding."""

import torch
from torch.testing import assert_close
from transformers import DynamicCache

from hf_elm.modeling.monarc.configuration_monarc import MonArcConfig
from hf_elm.modeling.monarc.modeling_monarc import MonArcForCausalLM
from tests.modeling.monarc.tiny_monarc import double_precision_norms


VOCAB, NEW = 64, 6
NO_IDS = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
LLAMA_LIKE = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, **NO_IDS,
)  # fmt: skip
LMS = {
    "stablelm": LLAMA_LIKE,
    "llama": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "opt": dict(LLAMA_LIKE, ffn_dim=64, word_embed_proj_dim=32),  # linear layers that see batch and sequence as one
    "gpt2": dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128, **NO_IDS),
}


def build(kind="llama", dtype=torch.float64, energy_std=0.15, **fields):
    """A tiny model whose energies differ by about a nat between tokens."""
    torch.manual_seed(0)
    model = MonArcForCausalLM(MonArcConfig(text_config={"model_type": kind, **LMS[kind]}, **fields))
    for name, weight in model.named_parameters():
        if name.startswith("energy") and "norm" not in name:
            torch.nn.init.normal_(weight, std=energy_std)
        elif weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return double_precision_norms(model.to(dtype)).eval()


def padded_prompt(batch=2, length=7, padding=3):
    """``batch`` rows, the first of them left-padded."""
    ids = torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    return {"input_ids": ids, "attention_mask": mask}


def generate(model, seed=0, **options):
    options = {"max_new_tokens": NEW, "do_sample": True, "top_k": 0, "pad_token_id": 0} | options
    torch.manual_seed(seed)
    return model.generate(**options)


def with_new_tokens(inputs, sequences):
    """``inputs`` of a plain forward pass over what was generated."""
    new = sequences.shape[1] - inputs["input_ids"].shape[1]
    mask = inputs["attention_mask"]
    return {"input_ids": sequences, "attention_mask": torch.cat([mask, mask.new_ones(mask.shape[0], new)], 1)}


def exact_step(model, input_ids, attention_mask):
    """(LM log-probabilities, energies) of every token of the vocabulary as the next one, ``(batch, vocab)`` each."""
    row = with_new_tokens(
        {"input_ids": input_ids, "attention_mask": attention_mask}, torch.nn.functional.pad(input_ids, (0, 1))
    )
    candidates = torch.arange(VOCAB)[None, :, None].expand(input_ids.shape[0], -1, row["input_ids"].shape[1])
    scores = model.score_candidates(candidates=candidates.contiguous(), **row)
    return scores.log_probs[..., -1], scores.energies[..., -1]


def check_cache(model, inputs, out):
    """The returned cache is that of a plain forward pass; as in transformers, the last token has not entered it yet."""
    row = with_new_tokens(inputs, out.sequences[:, :-1])
    positions = (row["attention_mask"].cumsum(1) - 1).clamp(min=0)
    plain = DynamicCache(config=model.config.get_text_config())
    model(**row, position_ids=positions, past_key_values=plain, use_cache=True)
    assert type(out.past_key_values) is DynamicCache
    assert out.past_key_values.get_seq_length() == out.sequences.shape[1] - 1
    token = row["attention_mask"].bool()[:, None, :, None]
    for kept, expected in zip(out.past_key_values.layers, plain.layers, strict=True):
        assert_close(kept.keys * token, expected.keys * token, atol=1e-10, rtol=0)
        assert_close(kept.values * token, expected.values * token, atol=1e-10, rtol=0)
