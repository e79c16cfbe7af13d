"""Tiny M2-BERT embedders, their tokenizer, and texts of many lengths."""

import random

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hf_elm.modeling.m2_bert import M2BertForSentenceEmbedding
from tests.modeling.m2_bert.tiny_m2_bert import tiny_model


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    "the",
    "energy",
    "of",
    "a",
    "token",
    "is",
    "lower",
    "where",
    "text",
    "likely",
    "and",
    "filters",
    "reach",
    "far",
    "in",
    "both",
    "directions",
    "at",
    "once",
]


def tiny_tokenizer(special_tokens=True, **options):
    """Words, between [CLS] and [SEP]."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special_tokens:
        ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
        backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names | {"mask_token": "[MASK]"} | options)


def tiny_embedder(cls=M2BertForSentenceEmbedding, **fields):
    """A model whose every parameter is random, and whose vectors therefore differ; 32 dimensions, up to 64 tokens."""
    return tiny_model(cls, spread=0.05, **{"vocab_size": len(SPECIAL) + len(WORDS), **fields})


def texts(count=31, longest=50, seed=0):
    """Texts of 0 to ``longest`` words."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(0, longest))) for _ in range(count)]


def save_embedder(folder, cls=M2BertForSentenceEmbedding, tokenizer=None, **fields):
    """The model that was saved in ``folder``, with a tokenizer beside it."""
    model = tiny_embedder(cls, **fields)
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return model
