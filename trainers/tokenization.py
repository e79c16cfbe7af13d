"""Tokenizers: bytes, characters or byte pairs learnt from a corpus, or any pretrained one; and corpora turned into ids.

Tokenizers made here are plain `tokenizers` pipelines: they are saved by ``save_pretrained`` and loaded by
``AutoTokenizer`` without remote code. Decoding gives a text back exactly, line ends and spaces included, and the name
of a special token inside a text is text: only this module puts the end of a document into the ids.
"""

import difflib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import chain

from datasets import Dataset, Features, IterableDataset, Value
from datasets.fingerprint import Hasher
from tokenizers import AddedToken, Tokenizer, decoders, models, trainers
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging

from .corpus_sources import require_column


logger = logging.get_logger(__name__)

EOS, PAD, UNK = "<|endoftext|>", "<|pad|>", "<|unk|>"
CAUSAL_TOKENS = {"eos_token": EOS, "pad_token": PAD}
ENCODER_TOKENS = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
BPE_VOCAB_SIZE = 4096


def build_tokenizer(
    kind: str = "byte",
    texts: Iterable[str] | Dataset | IterableDataset | None = None,
    vocab_size: int | None = None,
    *,
    max_bytes: int = 100_000_000,
    encoder: bool = False,
) -> PreTrainedTokenizerBase:
    """A tokenizer with an end-of-document and a padding token; for an encoder with [CLS], [SEP], [MASK] and [PAD] instead.

    ==========  ================================================  ====================================================
    kind        token                                             vocab_size
    ==========  ================================================  ====================================================
    ``"byte"``  a byte of UTF-8; its id is the byte               258, no other
    ``"char"``  a character of ``texts``; others are ``<|unk|>``  all that occur, or the most frequent so many, special
                (see `unknown_characters`)                        tokens included
    ``"bpe"``   byte pairs learnt from ``texts`` (Sennrich et     4096 where it is not given, at least 258
                al. 2016; bytes and word split of GPT-2)
    path or id  that of the pretrained tokenizer                  its own, not to be given
    ==========  ================================================  ====================================================

    A pretrained tokenizer without a padding token pads with its end-of-document token. Nothing is added to it, so no
    embedding has to be resized; packed rows mark padding by segment and label, never by id.

    An encoder's tokenizer puts [CLS] and [SEP] around a text and knows the name of a special token inside it, so that a
    user can write [MASK]; byte and bpe vocabularies are two tokens larger. A pretrained one must have these four tokens.

    Args:
        texts: documents to learn from, or a dataset with a ``text`` column; "byte" and pretrained ones ignore it.
        max_bytes: how much of ``texts`` is read, in UTF-8 bytes; a stream may be endless.
        encoder: for a masked language model.

    Raises:
        TypeError: ``texts`` is a single string, or holds something else than strings.
        ValueError: ``texts`` missing or empty, a vocab_size out of range, a tokenizer that cannot be loaded.
    """
    specials = ENCODER_TOKENS if encoder else CAUSAL_TOKENS
    if kind == "byte":
        return _byte_tokenizer(vocab_size, specials)
    if kind not in ("char", "bpe"):
        return _pretrained_tokenizer(kind, vocab_size, encoder)
    if texts is None:
        raise ValueError(f"kind={kind!r} is learnt from a corpus: give texts, e.g. load_corpus('stdlib').train.")
    texts = _bounded_texts(texts, max_bytes)
    first = next(texts, None)
    if first is None:
        raise ValueError(f"texts is empty; kind={kind!r} needs at least one document to learn from.")
    return {"char": _char_tokenizer, "bpe": _bpe_tokenizer}[kind](chain([first], texts), vocab_size, specials)


def tokenize_corpus(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    text_column: str = "text",
    *,
    num_proc: int | None = None,
    batch_size: int = 100,
) -> Dataset | IterableDataset:
    """The documents of ``text_column`` as column ``input_ids``: what the tokenizer makes of the text, then its eos.

    A tokenizer that begins a text with a bos token, as Llama's does, keeps doing so. The result depends neither on
    ``num_proc`` nor on ``batch_size``, and `datasets` caches it under a hash of the tokenizer.

    Raises:
        TypeError: a document that is not a string.
        ValueError: no such column; a tokenizer without an eos token.
    """
    require_column(dataset, text_column)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"tokenizer {tokenizer.name_or_path!r} has no eos_token to end documents with; set tokenizer.eos_token, e.g. to its "
            "sep_token."
        )
    options = {
        "batched": True,
        "batch_size": batch_size,
        "input_columns": [text_column],
        "remove_columns": [text_column],
        "features": Features({"input_ids": [Value("int32")]}),
    }
    if isinstance(dataset, Dataset):
        options |= {"num_proc": num_proc, "desc": "Tokenizing"}
        options |= {"new_fingerprint": corpus_fingerprint(dataset, tokenizer, text_column)}
    function = partial(_document_ids, tokenizer=tokenizer, text_column=text_column)
    return dataset.select_columns([text_column]).map(function, **options)


def _document_ids(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, text_column: str
) -> dict[str, list[list[int]]]:
    require_strings(texts, text_column)
    encoded = tokenizer(texts, return_attention_mask=False, return_token_type_ids=False, verbose=False)["input_ids"]
    eos = tokenizer.eos_token_id
    return {"input_ids": [ids if ids and ids[-1] == eos else [*ids, eos] for ids in encoded]}


def require_strings(texts: Iterable, text_column: str) -> None:
    """Refuses documents that are no strings with a TypeError that names the column."""
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(
                f"column {text_column!r} must hold strings, got {type(text).__name__}; filter such rows out."
            )


def corpus_fingerprint(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, text_column: str) -> str | None:
    """What the ids depend on, as a hash; None (`datasets` then hashes the function) for a tokenizer of another backend."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    pipeline = json.loads(tokenizer.backend_tokenizer.to_str())
    pipeline |= {"padding": None, "truncation": None}  # the last call's settings
    settings = [tokenizer.eos_token_id, tokenizer.split_special_tokens, text_column]
    return Hasher.hash([dataset._fingerprint, json.dumps(pipeline), settings])


# ------------------------------------------------------------------------------------------------------------- kinds


def _byte_tokenizer(vocab_size: int | None, specials: dict[str, str]) -> PreTrainedTokenizerFast:
    if vocab_size not in (None, 256 + len(specials)):
        raise ValueError(
            f"vocab_size={vocab_size} does not fit kind='byte', which has {256 + len(specials)} tokens; leave it out or take 'bpe'."
        )
    vocab = {character: byte for byte, character in enumerate(_byte_characters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _wrapped(tokenizer, specials)


def _byte_characters() -> list[str]:
    """The visible character that stands for each byte 0..255 in a byte-level vocabulary (GPT-2's table)."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


def _char_tokenizer(texts: Iterator[str], vocab_size: int | None, specials: dict[str, str]) -> PreTrainedTokenizerFast:
    counts = Counter()
    for text in texts:
        counts.update(text)
    names = [UNK, *specials.values()]
    if vocab_size is not None and vocab_size <= len(names):
        raise ValueError(f"vocab_size must exceed the {len(names)} special tokens for kind='char', got {vocab_size}.")
    room = None if vocab_size is None else vocab_size - len(names)
    frequent = sorted(counts, key=lambda character: (-counts[character], character))[:room]
    vocab = {token: index for index, token in enumerate([*sorted(frequent), *names])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=UNK))
    tokenizer.decoder = decoders.Fuse()
    return _wrapped(tokenizer, {"unk_token": UNK, **specials})


def _bpe_tokenizer(texts: Iterator[str], vocab_size: int | None, specials: dict[str, str]) -> PreTrainedTokenizerFast:
    vocab_size = BPE_VOCAB_SIZE if vocab_size is None else vocab_size
    if vocab_size < 256 + len(specials):
        raise ValueError(
            f"vocab_size must be at least {256 + len(specials)} for kind='bpe' (256 bytes and {len(specials)} special tokens), "
            f"got {vocab_size}."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[*specials.values()],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=logging.is_progress_bar_enabled() and sys.stderr.isatty(),  # else it prints blank lines
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        logger.warning(f"The corpus gives {tokenizer.get_vocab_size()} of the {vocab_size} tokens asked for.")
    return _wrapped(tokenizer, specials)


def _wrapped(tokenizer: Tokenizer, specials: dict[str, str]) -> PreTrainedTokenizerFast:
    """``tokenizer`` with its special tokens as a transformers tokenizer that changes nothing in a text.

    One for an encoder frames texts by [CLS] and [SEP], and reads their names inside a text as the tokens.
    """
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials.values()])
    encoder = "cls_token" in specials
    if encoder:
        frame = [specials["cls_token"], specials["sep_token"]]
        tokenizer.post_processor = TemplateProcessing(
            single=f"{frame[0]} $A {frame[1]}",
            pair=f"{frame[0]} $A {frame[1]} $B:1 {frame[1]}:1",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in frame],
        )
    types = ["token_type_ids"] if encoder else []  # of the second text of a pair
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        split_special_tokens=not encoder,
        model_input_names=["input_ids", *types, "attention_mask"],
        **specials,
    )


def _pretrained_tokenizer(kind: str, vocab_size: int | None, encoder: bool) -> PreTrainedTokenizerBase:
    if vocab_size is not None:
        raise ValueError(
            f"vocab_size={vocab_size} cannot be given for the pretrained tokenizer {kind!r}; leave it out."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(kind, trust_remote_code=False)
    except Exception as error:  # whatever a broken or missing folder makes of it
        near = difflib.get_close_matches(str(kind), ["byte", "char", "bpe"], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"kind={kind!r} is none of 'byte', 'char', 'bpe', and no pretrained tokenizer could be loaded from it.{hint} ({error})"
        ) from error
    if encoder:
        if missing := [name for name in ENCODER_TOKENS if getattr(tokenizer, name) is None]:
            raise ValueError(
                f"The tokenizer {kind!r} has no {', '.join(missing)}, which a masked language model needs."
            )
        return tokenizer
    if tokenizer.eos_token is None:
        if tokenizer.sep_token is None:
            raise ValueError(f"The tokenizer {kind!r} has no eos_token to end documents with; set one and save it.")
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _bounded_texts(texts: Iterable, max_bytes: int) -> Iterator[str]:
    """The strings of ``texts``, or of the ``text`` column of its rows, until ``max_bytes`` bytes are read."""
    if isinstance(texts, (str, bytes)):
        raise TypeError("texts must be an iterable of documents, got a single string; write [text].")
    if isinstance(texts, (Dataset, IterableDataset)):
        require_column(texts, "text", "texts")
    for text in texts:
        text = text["text"] if isinstance(text, Mapping) else text
        if not isinstance(text, str):
            raise TypeError(f"texts must hold strings, or rows with a string 'text', got {type(text).__name__}.")
        yield text
        max_bytes -= len(text.encode())
        if max_bytes <= 0:
            return
