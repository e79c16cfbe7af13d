"""Texts as the token rows that a detector reads, the same way in training and in use."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from .evaluation_rows import unknown_token_id


class TextCodec:
    """Encodes texts without special tokens, and back.

    Attributes:
        prefix: what the tokenizer puts before every text (a bos token), or nothing.
        specials: ids that no text holds.
        unknown: the id of text that the tokenizer does not know; None where it knows all.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.unknown = unknown_token_id(tokenizer)
        self.specials = sorted(set(tokenizer.all_special_ids))
        begins = tokenizer("a", verbose=False)["input_ids"][:1] == [tokenizer.bos_token_id]
        self.prefix = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None and begins else []

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``; what looks like a special token is text."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def document(self, ids: list[int], tokens: int) -> str | None:
        """The text of the first ``tokens`` tokens of the text of ``ids``; None where it does not encode to itself."""
        kept = self.encode(self.decode(ids))[:tokens]
        text = self.decode(kept)
        whole = len(kept) == tokens and "\ufffd" not in text and self.unknown not in ids
        return text if whole and self.encode(text) == kept else None

    def row(self, ids: list[int]) -> list[int]:
        """``ids`` as the model reads them."""
        return [*self.prefix, *ids]

    def known(self, text: str) -> list[int]:
        """The token ids of ``text`` without those of unknown text."""
        return [token for token in self.encode(text) if token != self.unknown]

    def pieces(self, ids: list[int], tokens: int) -> list[list[int]]:
        """``ids`` as rows of ``tokens`` tokens; the last one overlaps the one before it where the text ends between.

        A shorter text is one row. Nothing comes of a text of less than two tokens.
        """
        if len(ids) < 2:
            return []
        starts = [*range(0, max(1, len(ids) - tokens + 1), tokens)]
        if len(ids) > tokens and starts[-1] + tokens < len(ids):
            starts.append(len(ids) - tokens)
        return [self.row(ids[start : start + tokens]) for start in starts]
