"""Bytes of text behind counted tokens, so that likelihoods of different tokenizers can be compared in bits/byte."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from .evaluation_rows import RowBatch, document_slices


class TokenBytes:
    """UTF-8 bytes of the counted tokens of a batch: `TokenBytes.of(...)`, then ``token_bytes(batch)``.

    Where every token stands for a fixed number of bytes (a table, or a byte-level tokenizer) those are summed; otherwise
    the counted tokens of each document are decoded together and their bytes are credited to the first of them. Special
    tokens stand for no text.
    """

    def __init__(self, table: Tensor | None, tokenizer=None):
        self.table = table
        self.tokenizer = tokenizer

    @classmethod
    def of(cls, tokenizer, bytes_per_token: Sequence[int] | Tensor | None, vocab_size: int) -> TokenBytes | None:
        """None when neither is given.

        Raises:
            ValueError: both are given, or a table that does not cover the vocabulary.
        """
        if bytes_per_token is not None:
            table = torch.as_tensor(bytes_per_token, dtype=torch.float64).cpu()
            if tokenizer is not None:
                raise ValueError("pass tokenizer or bytes_per_token, not both.")
            if table.ndim != 1 or len(table) < vocab_size:
                raise ValueError(
                    f"bytes_per_token must hold one number for each of {vocab_size} token ids, got shape {tuple(table.shape)}."
                )
            return cls(table)
        if tokenizer is None:
            return None
        return cls(_byte_level_table(tokenizer, vocab_size), tokenizer)

    def __call__(self, batch: RowBatch) -> Tensor:
        """Bytes of each counted token in row-major order, float64 ``(counted,)``."""
        if self.table is not None:
            return self.table[batch.input_ids[batch.counted]]
        num_bytes = torch.zeros(batch.input_ids.shape, dtype=torch.float64)
        for row, start, end in document_slices(batch):
            places = batch.counted[row, start:end].nonzero().flatten() + start
            if len(places):
                ids = batch.input_ids[row, places].tolist()
                text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                num_bytes[row, places[0]] = len(text.encode("utf-8", errors="surrogatepass"))
        return num_bytes[batch.counted]


def _byte_level_table(tokenizer, vocab_size: int) -> Tensor | None:
    """Bytes of every token of a byte-level tokenizer, whose tokens hold one character per byte; None for other kinds."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or (json.loads(backend.to_str()).get("decoder") or {}).get("type") != "ByteLevel":
        return None
    added, special = tokenizer.added_tokens_decoder, set(tokenizer.all_special_ids)
    table = torch.zeros(vocab_size, dtype=torch.float64)
    for token_id, token in enumerate(tokenizer.convert_ids_to_tokens(range(min(len(tokenizer), vocab_size)))):
        if token_id in added:
            table[token_id] = 0 if token_id in special else len(str(added[token_id]).encode())
        elif token is not None:
            table[token_id] = len(token)
    return table
