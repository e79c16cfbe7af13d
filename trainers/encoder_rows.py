"""Documents as rows of an encoder: one document or one piece of it per row, between the tokens that open and close a text.

Texts are not joined in a row: a long convolution mixes all that stands in it.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from datasets import Dataset, Features, Value
from datasets.fingerprint import Hasher

from .tokenization import corpus_fingerprint, require_strings


SHORTEST_SHARE = 16  # rows of drawn length have at least this part of the longest


def encoder_rows(dataset, tokenizer, args, variable_length_share: float = 0.0):
    """The documents of ``dataset`` as column ``input_ids`` of rows ``[CLS] piece [SEP]``, every token in exactly one row.

    A special token's name inside a text is text.

    Args:
        dataset: a `datasets.Dataset` or a stream with the column ``args.text_column``.
        tokenizer: with a cls, a sep and a mask token.
        args: ``max_length``, tokens per row at most, and ``seed``, ``text_column``.
        variable_length_share: share of rows whose length is drawn uniformly from ``max_length / 16`` to ``max_length``; the
            others take as much of their document as fits. Draws depend on the seed and the document's place alone.

    Raises:
        TypeError: a document that is not a string.
        ValueError: no tokenizer for encoders.
    """
    require_encoder_tokenizer(tokenizer)
    settings = {
        "max_length": args.max_length,
        "share": variable_length_share,
        "seed": args.seed,
        "text_column": args.text_column,
    }
    options = {
        "batched": True,
        "batch_size": 100,
        "with_indices": True,
        "input_columns": [args.text_column],
        "remove_columns": [args.text_column],
        "features": Features({"input_ids": [Value("int32")]}),
    }
    if isinstance(dataset, Dataset):
        fingerprint = corpus_fingerprint(dataset, tokenizer, args.text_column)
        options |= {"desc": "Tokenizing"}
        options |= {"new_fingerprint": fingerprint and Hasher.hash([fingerprint, "encoder rows", settings])}
    function = partial(_batch_rows, tokenizer=tokenizer, **settings)
    return dataset.select_columns([args.text_column]).map(function, **options)


def require_encoder_tokenizer(tokenizer) -> None:
    """Refuses a tokenizer that lacks a token that rows of an encoder need.

    Raises:
        ValueError: naming the tokens.
    """
    needed = ("cls_token", "sep_token", "mask_token", "pad_token")
    missing = [name for name in needed if getattr(tokenizer, name, None) is None]
    if missing:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} has no {', '.join(missing)}, which masked language modelling needs; take one made for encoders, such "
            "as bert-base-uncased or build_tokenizer(kind, texts, encoder=True)."
        )


def _batch_rows(texts, places, tokenizer, max_length, share, seed, text_column):
    require_strings(texts, text_column)
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    opening, closing = tokenizer.cls_token_id, tokenizer.sep_token_id
    rows = []
    for tokens, place in zip(encoded, places, strict=True):
        lengths = _lengths(max_length, share, np.random.default_rng([seed, place]))
        rows += [[opening, *piece, closing] for piece in _pieces(tokens, lengths)]
    return {"input_ids": rows}


def _lengths(max_length: int, share: float, draws: np.random.Generator) -> Iterator[int]:
    """Tokens of text in the next row, without end."""
    room = max_length - 2
    shortest = max(1, max_length // SHORTEST_SHARE - 2)
    while True:
        yield int(draws.integers(shortest, room + 1)) if share and draws.random() < share else room


def _pieces(tokens: Sequence[int], lengths: Iterator[int]) -> Iterator[Sequence[int]]:
    start = 0
    while start < len(tokens):
        length = next(lengths)
        yield tokens[start : start + length]
        start += length
