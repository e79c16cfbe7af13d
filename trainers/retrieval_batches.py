"""Rows of query, positives and negatives as batches of token ids and a matrix of labels."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .retrieval_losses import NEGATIVE, NO_PAIR, POSITIVE


class RetrievalCollator:
    """Rows ``{"query": str, "positives": [str], "negatives": [str]}`` -> a batch

    * ``queries``, ``documents``: ``input_ids`` and ``attention_mask``, ``(texts, longest)``; equal documents are there once;
    * ``labels``: ``(queries, documents)``, 1 = answers the query, 0 = does not, -100 = no pair.

    Args:
        tokenizer: needs a padding token.
        max_length, max_query_length: tokens of a document and of a query; longer texts are cut.
        query_prompt, document_prompt: put before each text.
        in_batch_negatives: documents of other rows are negatives (unless the row has the same text among its positives).

    Raises:
        ValueError: the tokenizer has no padding token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        max_query_length: int | None = None,
        query_prompt: str = "",
        document_prompt: str = "",
        in_batch_negatives: bool = False,
    ):
        if tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer has no padding token; set tokenizer.pad_token, e.g. to its eos_token.")
        self.tokenizer = tokenizer
        self.max_length, self.max_query_length = max_length, max_query_length or max_length
        self.query_prompt, self.document_prompt = query_prompt, document_prompt
        self.between_rows = NEGATIVE if in_batch_negatives else NO_PAIR

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, dict[str, Tensor] | Tensor]:
        place: dict[str, int] = {}
        for row in rows:
            for text in (*row["positives"], *row["negatives"]):
                place.setdefault(text, len(place))
        labels = torch.full((len(rows), len(place)), self.between_rows)
        for index, row in enumerate(rows):
            labels[index, [place[text] for text in row["negatives"]]] = NEGATIVE
            labels[index, [place[text] for text in row["positives"]]] = POSITIVE
        return {
            "queries": self._encode([self.query_prompt + row["query"] for row in rows], self.max_query_length),
            "documents": self._encode([self.document_prompt + text for text in place], self.max_length),
            "labels": labels,
        }

    def _encode(self, texts, max_length):
        options = {"padding": True, "truncation": True, "return_token_type_ids": False, "return_tensors": "pt"}
        return dict(self.tokenizer(texts, max_length=max_length, **options))
