"""A MonArc model, rows and a tokenizer small enough that every likelihood can be recomputed."""

import torch

from hf_elm import MonArcConfig, MonArcForCausalLM


VOCAB = 12


def make_model(vocab_size=VOCAB, energy_scale=0.5, lm_scale=4.0, **fields):
    """Float64 StableLM with a random, non-zero energy; ``lm_scale`` makes the LM's distribution uneven."""
    text_config = {
        "model_type": "stablelm",
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    torch.manual_seed(0)
    model = MonArcForCausalLM(MonArcConfig(text_config=text_config, **fields)).double().eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(lm_scale * 10)
        for parameter in model.energy_parameters():
            parameter.normal_(std=energy_scale)
    return model


def make_rows(num_rows=4, length=9, vocab_size=VOCAB, seed=1):
    """Rows of two packed documents and one place of padding, in the format of the packer."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(num_rows):
        ids = torch.randint(0, vocab_size, (length,), generator=generator).tolist()
        first = 3 + i % 3
        segments = [0] * first + [1] * (length - 1 - first) + [-1]
        labels = [
            -100 if t == 0 or segments[t] < 0 or segments[t] != segments[t - 1] else ids[t] for t in range(length)
        ]
        rows.append({"input_ids": ids, "segment_ids": segments, "labels": labels})
    return rows


def documents(rows):
    for row in rows:
        for segment in range(max(row["segment_ids"]) + 1):
            yield [t for t, s in zip(row["input_ids"], row["segment_ids"], strict=True) if s == segment]


class LetterTokenizer:
    """Token i is the i-th entry; decodes by joining; no byte-level table."""

    texts = ("a", "é", "日", "<s>", *"bcdefghi")

    def decode(self, ids, skip_special_tokens=False, clean_up_tokenization_spaces=None):
        assert skip_special_tokens
        return "".join(self.texts[i] for i in ids if i != 3)
