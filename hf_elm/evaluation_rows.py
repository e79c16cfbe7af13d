"""Tokenised rows made into batches for likelihoods: checked, padded, and cut into documents."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


COLUMNS = {  # column -> padding value
    "input_ids": 0,
    "attention_mask": 0,
    "position_ids": 0,
    "segment_ids": -1,
    "labels": -100,
    "document_ids": -1,
}


@dataclass
class RowBatch:
    """Rows padded on the right to one length; every tensor is int64 ``(batch, seq)``.

    Attributes:
        input_ids: tokens.
        attention_mask: 1 = token, 0 = padding; None when the rows have none and need none.
        position_ids, segment_ids: as in the rows, or None; segment -1 is padding.
        counted: boolean, tokens that the rows' labels allow to be counted (all but padding without labels).
        documents: keys of the documents that tokens belong to, ``(batch, seq, 2)``: (row, segment), or (-1, document id)
            where the rows carry ``document_ids``, which lets a document run over several rows.
        first_row: number of the first row within the data.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor | None
    segment_ids: Tensor | None
    counted: Tensor
    documents: Tensor
    first_row: int

    def model_inputs(self, device: torch.device) -> dict[str, Tensor]:
        """Keyword arguments of the model, on ``device``; what the rows do not say is left out."""
        names = ("input_ids", "attention_mask", "position_ids", "segment_ids")
        return {name: getattr(self, name).to(device) for name in names if getattr(self, name) is not None}


def row_batches(
    data: Iterable[Mapping], batch_size: int, max_positions: int | None, vocab_size: int
) -> Iterator[RowBatch]:
    """Yields the rows of ``data`` in order, ``batch_size`` at a time.

    Args:
        data: a `datasets.Dataset` or an iterable of dicts with ``input_ids`` and, if there are any, ``segment_ids``,
            ``labels``, ``attention_mask``, ``position_ids``, ``document_ids``; as `trainers.packing` makes them.
        max_positions: longest row that the model takes; None = any.
        vocab_size: token ids must be below it.

    Raises:
        TypeError: rows that are no dicts of integer sequences.
        ValueError: no rows, no ``input_ids``, columns of unequal length, a row too long, a token id out of range.
    """
    rows, number = [], -1
    for number, row in enumerate(data):
        rows.append(_checked_row(row, number, max_positions, vocab_size))
        if len(rows) == batch_size:
            yield _collate(rows, number + 1 - len(rows))
            rows = []
    if number < 0:
        raise ValueError("data has no rows: pass a dataset or an iterable with at least one row of input_ids.")
    if rows:
        yield _collate(rows, number + 1 - len(rows))


def document_slices(batch: RowBatch) -> list[tuple[int, int, int]]:
    """(row, start, end) of every run of tokens that see each other, padding left out."""
    padding = torch.full_like(batch.input_ids[:, :1], -1)
    segments = torch.zeros_like(batch.input_ids) if batch.segment_ids is None else batch.segment_ids.clone()
    if batch.attention_mask is not None:
        segments[batch.attention_mask == 0] = -1
    changes = torch.cat([padding, segments], 1) != torch.cat([segments, padding], 1)
    slices = []
    for row, change in enumerate(changes):
        edges = [0, *change.nonzero().flatten().tolist(), segments.shape[1]]
        slices += [(row, a, b) for a, b in itertools.pairwise(edges) if a < b and segments[row, a] >= 0]
    return slices


def in_random_order(data, seed: int):
    """Rows that can be indexed in a random order of ``seed``; a stream as it is."""
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        return data
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
    return data.select(order) if hasattr(data, "select") else [data[index] for index in order]


def unknown_token_id(tokenizer) -> int | None:
    """The token for unknown text; None where there is none, or where it is the end of text (GPT-2, which knows every byte)."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    return None if unknown == getattr(tokenizer, "eos_token_id", None) else unknown


def leave_out_unknown(batch: RowBatch, unknown_id: int | None) -> int:
    """Takes the tokens ``unknown_id`` out of ``batch.counted``; how many there were."""
    if unknown_id is None:
        return 0
    unknown = batch.counted & (batch.input_ids == unknown_id)
    batch.counted &= ~unknown
    return int(unknown.sum())


def _checked_row(row, number, max_positions, vocab_size) -> dict[str, Tensor]:
    if not isinstance(row, Mapping):
        raise TypeError(
            f"data must yield dicts with input_ids, got {type(row).__name__} at row {number}; "
            "hf_elm.trainers.packing.pack_rows makes such rows from text."
        )
    if "input_ids" not in row:
        raise ValueError(
            f"data rows need a column input_ids, row {number} has {sorted(map(str, row))}; "
            "tokenise and pack text first, with hf_elm.trainers.packing.pack_rows."
        )
    columns = {name: _vector(row[name], name, number) for name in COLUMNS if row.get(name) is not None}
    length = len(columns["input_ids"])
    if not length:
        raise ValueError(f"row {number} is empty; leave rows without tokens out.")
    for name, values in columns.items():
        if len(values) != length:
            raise ValueError(
                f"{name} of row {number} has {len(values)} entries for {length} input_ids; they must match."
            )
    if max_positions is not None and length > max_positions:
        raise ValueError(
            f"row {number} has {length} tokens, but the model has {max_positions} positions: "
            f"pack the data with sequence_length <= {max_positions}."
        )
    _check_tokens(columns["input_ids"], columns.get("labels"), number, vocab_size)
    return columns


def _check_tokens(ids: Tensor, labels: Tensor | None, number: int, vocab_size: int) -> None:
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise ValueError(
            f"row {number} has token id {int(ids.min() if ids.min() < 0 else ids.max())}, outside the model's vocabulary "
            f"of {vocab_size}: was the data made with the model's tokenizer?"
        )
    if labels is not None and not ((labels == -100) | (labels == ids)).all():
        raise ValueError(
            f"labels of row {number} differ from its input_ids: a label is the token itself or -100 (not counted); "
            "the shift by one happens in the model, so pass labels unshifted."
        )


def _vector(values, name, number) -> Tensor:
    try:
        vector = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        vector = None
    if vector is None or vector.ndim != 1 or (len(vector) and (vector.is_floating_point() or vector.is_complex())):
        raise TypeError(f"{name} of row {number} must be one flat sequence of integers, one row per dict.")
    return vector.long()


def _collate(rows: list[dict[str, Tensor]], first_row: int) -> RowBatch:
    for name in COLUMNS:
        if len({name in row for row in rows}) > 1:
            raise ValueError(
                f"{name} is in some of rows {first_row} to {first_row + len(rows) - 1} only; in all or in none."
            )
    columns = {
        name: torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=padding)
        for name, padding in COLUMNS.items()
        if name in rows[0]
    }
    ids = columns["input_ids"]
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    token = torch.arange(ids.shape[1]) < lengths.unsqueeze(1)
    mask, segments = columns.get("attention_mask"), columns.get("segment_ids")
    if mask is None and segments is None and not token.all():
        mask = columns["attention_mask"] = token.long()
    for present in (mask != 0 if mask is not None else None, segments >= 0 if segments is not None else None):
        token = token if present is None else token & present
    labels = columns.get("labels")
    return RowBatch(
        ids,
        mask,
        columns.get("position_ids"),
        segments,
        counted=token if labels is None else token & (labels != -100),
        documents=_document_keys(columns, first_row),
        first_row=first_row,
    )


def _document_keys(columns: dict[str, Tensor], first_row: int) -> Tensor:
    ids = columns["input_ids"]
    if "document_ids" in columns:
        return torch.stack([torch.full_like(ids, -1), columns["document_ids"]], -1)
    numbers = torch.arange(first_row, first_row + len(ids)).unsqueeze(1).expand_as(ids)
    return torch.stack([numbers, columns.get("segment_ids", torch.zeros_like(ids))], -1)
