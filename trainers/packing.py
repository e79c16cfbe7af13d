"""Datasets and streams of documents as packed rows (what a row is: `row_packer`), and rows as batches of tensors."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from datasets import Dataset, Features, IterableDataset, Value
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from .row_packer import PADDING, QUEUE_SIZE, Piece, RowPacker
from .tokenization import tokenize_corpus


__all__ = ["PackedRows", "PackingCollator", "RowPacker", "iter_packed_rows", "pack_rows", "row_segments"]


def pack_rows(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase | None,
    sequence_length: int,
    *,
    text_column: str = "text",
    reset_position_ids: bool = False,
    strategy: str = "wrapped",
    seed: int | None = 0,
    drop_last: bool = False,
    num_proc: int | None = None,
) -> Dataset:
    """The documents of ``dataset`` as packed rows (see `row_packer`); `datasets` caches them for datasets on disk.

    Args:
        dataset: documents in ``text_column``, or already as ``input_ids`` (taken as they are, eos included or not).
        tokenizer: for text; also gives the padding token. None where there are ids: padding is then token 0.
        strategy, drop_last: see `RowPacker`.
        seed: order in which documents are packed; None keeps the order of the dataset. ``document_ids`` are the
            documents' places in ``dataset`` in any case.
        num_proc: processes that tokenize; the rows do not depend on it.

    Raises:
        TypeError: ``dataset`` is a stream.
        ValueError: rows that are packed already, no such column, no tokens, or less than a row of them with
            ``drop_last``; an argument out of range.
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"dataset must be a datasets.Dataset, got {type(dataset).__name__}; take iter_packed_rows for streams."
        )
    packer = RowPacker(
        sequence_length,
        pad_token_id=_pad_token_id(tokenizer),
        strategy=strategy,
        reset_position_ids=reset_position_ids,
        drop_last=drop_last,
    )
    tokens = _tokens(dataset, tokenizer, text_column, num_proc=num_proc)
    order = np.arange(len(tokens)) if seed is None else np.random.default_rng(seed).permutation(len(tokens))
    settings = [seed, sequence_length, packer.pad_token_id, strategy, QUEUE_SIZE, reset_position_ids, drop_last]
    documents = tokens.select(order).with_format("arrow")
    rows = documents.map(
        partial(_pack_batch, packer=packer, order=order),
        batched=True,
        batch_size=100,
        with_indices=True,
        remove_columns=tokens.column_names,
        features=Features({name: [Value("int32")] for name in packer.columns}),
        new_fingerprint=Hasher.hash([tokens._fingerprint, *settings]),
        desc="Packing",
    )
    if len(rows) == 0:
        reason = f"fill no row of sequence_length={sequence_length}" if drop_last else "hold no tokens"
        raise ValueError(f"dataset gives no rows: its {len(dataset)} documents {reason}; give more text.")
    return rows.with_format(None)


def _pack_batch(table, places: list[int], packer: RowPacker, order: np.ndarray) -> dict[str, list[np.ndarray]]:
    """The rows that are complete with a batch of documents; the packer carries the rest from one batch to the next."""
    documents = zip(table["input_ids"], order[places], strict=True)
    rows = [row for ids, number in documents for row in packer.push(_vector(ids), int(number))]
    if places[-1] == len(order) - 1:
        rows += packer.flush()
    return {name: [row[name] for row in rows] for name in packer.columns}


def iter_packed_rows(
    dataset: IterableDataset | Dataset,
    tokenizer: PreTrainedTokenizerBase | None,
    sequence_length: int,
    *,
    text_column: str = "text",
    reset_position_ids: bool = False,
    strategy: str = "wrapped",
    seed: int = 0,
    shuffle_buffer_size: int = 0,
    drop_last: bool = False,
) -> "PackedRows":
    """The documents of a stream as packed rows, made while they are read; see `PackedRows` for resuming.

    Args: as for `pack_rows`, and
        shuffle_buffer_size: documents out of which the next one is drawn, by ``seed``; 0 keeps the stream's order.
    """
    if not isinstance(dataset, (Dataset, IterableDataset)):
        raise TypeError(
            f"dataset must be a `datasets` dataset, got {type(dataset).__name__}; wrap a generator function in "
            "datasets.IterableDataset.from_generator."
        )
    packer = RowPacker(
        sequence_length,
        pad_token_id=_pad_token_id(tokenizer),
        strategy=strategy,
        reset_position_ids=reset_position_ids,
        drop_last=drop_last,
    )
    stream = dataset.to_iterable_dataset() if isinstance(dataset, Dataset) else dataset
    return PackedRows(_tokens(stream, tokenizer, text_column), packer, seed, shuffle_buffer_size)


class PackedRows(torch.utils.data.IterableDataset):
    """Rows of a stream of documents, with a state: ``load_state_dict(state_dict())`` goes on with the very next row.

    Each iteration starts at the beginning, except the first one after ``load_state_dict``. The state holds the place in
    the stream, the documents in the shuffle buffer, the pieces and rows that were left over; it is made of plain lists
    and numbers. Within several processes split the stream first, by `datasets.distributed.split_dataset_by_node`.
    """

    def __init__(self, documents: IterableDataset, packer: RowPacker, seed: int = 0, shuffle_buffer_size: int = 0):
        super().__init__()
        self.documents = documents
        self.packer = packer
        self.buffer = _ShuffleBuffer(shuffle_buffer_size, seed)
        self._ready: deque[dict] = deque()
        self._loaded: dict | None = None  # the state to resume from

    def set_epoch(self, epoch: int):
        """Another order of documents for another epoch, where the order is shuffled."""
        self.documents.set_epoch(epoch)
        self.buffer.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        if self._loaded is None:
            self.packer.reset()
            self.buffer.reset()
            self._ready.clear()
            self.documents.load_state_dict({})  # `datasets` would resume in every iteration
        self._loaded = None
        yield from self._drain()
        for document in self.documents:
            for number, tokens in self.buffer.push(document["input_ids"]):
                self._ready += self.packer.push(tokens, number)
            yield from self._drain()
        for number, tokens in self.buffer.flush():
            self._ready += self.packer.push(tokens, number)
        self._ready += self.packer.flush()
        yield from self._drain()

    def _drain(self):
        while self._ready:
            yield self._ready.popleft()

    def state_dict(self) -> dict:
        if self._loaded is not None:
            return self._loaded
        return {
            "documents": self.documents.state_dict(),
            "packer": self.packer.state_dict(),
            "buffer": self.buffer.state_dict(),
            "ready": [{name: values.tolist() for name, values in row.items()} for row in self._ready],
        }

    def load_state_dict(self, state: dict):
        self.packer.load_state_dict(state["packer"])
        self.buffer.load_state_dict(state["buffer"])
        self.documents.set_epoch(self.buffer.epoch)  # `datasets` resumes within an epoch only
        self.documents.load_state_dict(state["documents"])
        rows = ({name: np.array(values, dtype=np.int32) for name, values in row.items()} for row in state["ready"])
        self._ready = deque(rows)
        self._loaded = state


class _ShuffleBuffer:
    """Holds ``size`` documents and gives one of them for each that comes; every draw depends on (seed, epoch, count)."""

    def __init__(self, size: int, seed: int):
        if size < 0:
            raise ValueError(f"shuffle_buffer_size must not be negative, got {size}; 0 keeps the order of the stream.")
        self.size, self.seed, self.epoch = size, seed, 0
        self.reset()

    def reset(self):
        self.held: list[Piece] = []
        self.count = 0

    def push(self, tokens: Sequence[int]) -> list[Piece]:
        piece = (self.count, np.asarray(tokens))
        self.count += 1
        if self.size == 0:
            return [piece]
        if len(self.held) < self.size:
            self.held.append(piece)
            return []
        slot = self._generator().integers(self.size)
        self.held[slot], piece = piece, self.held[slot]
        return [piece]

    def flush(self) -> list[Piece]:
        pieces = [self.held[slot] for slot in self._generator().permutation(len(self.held))]
        self.held = []
        return pieces

    def _generator(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch, self.count])

    def state_dict(self) -> dict:
        held = [[number, tokens.tolist()] for number, tokens in self.held]
        return {"epoch": self.epoch, "count": self.count, "held": held}

    def load_state_dict(self, state: dict):
        self.epoch, self.count = state["epoch"], state["count"]
        self.held = [(number, np.array(tokens, dtype=np.int32)) for number, tokens in state["held"]]


def row_segments(row: dict) -> list[np.ndarray]:
    """The tokens of each segment of a row: what the row holds, unpacked."""
    tokens, segments = np.asarray(row["input_ids"]), np.asarray(row["segment_ids"])
    return [tokens[segments == segment] for segment in range(segments.max(initial=-1) + 1)]


@dataclass
class PackingCollator:
    """Rows -> tensors ``(batch, seq)``, int64; rows of different lengths are padded on the right.

    Takes packed rows and rows of one document (``input_ids`` alone). Labels that are missing are the tokens, masked at
    padding and segment starts. ``attention_mask`` is given only where something is padded. ``negatives`` ``(K, seq)``
    become ``(batch, K, seq)``. Columns with other names are left out.

    Args:
        pad_token_id: fills ``input_ids`` and ``negatives``.
        pad_to_multiple_of: the length of a batch is rounded up to a multiple of it.
    """

    pad_token_id: int = 0
    pad_to_multiple_of: int = 1

    def __call__(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        names = [name for name in ("input_ids", *_OPTIONAL_COLUMNS) if rows[0].get(name) is not None]
        rows = [self._vectors(row, names, number) for number, row in enumerate(rows)]
        length = max(row["input_ids"].shape[-1] for row in rows)
        length = -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of
        batch = {name: torch.stack([self._padded(name, row[name], length) for row in rows]) for name in rows[0]}
        if batch["attention_mask"].all():
            del batch["attention_mask"]
        return batch

    def _vectors(self, row: dict, names: list[str], number: int) -> dict[str, torch.Tensor]:
        """The named columns of a row as tensors, with the mask and the labels that follow from them."""
        if any(row.get(name) is None for name in names):
            raise ValueError(
                f"Row {number} of the batch has columns {sorted(row)}, the first one has {names}; rows must agree."
            )
        row = {name: torch.as_tensor(np.asarray(row[name])).long() for name in names}
        shapes = {name: tuple(values.shape) for name, values in row.items()}
        if any(shape[-1:] != shapes["input_ids"] for shape in shapes.values()):
            raise ValueError(f"Row {number} of the batch has columns of different lengths: {shapes}.")
        mask = row.setdefault("attention_mask", torch.ones_like(row["input_ids"]))
        starts = torch.zeros_like(mask, dtype=torch.bool)
        if "segment_ids" in row:
            row["attention_mask"] = mask = mask * (row["segment_ids"] >= 0)
            starts = row["segment_ids"].diff(prepend=row["segment_ids"].new_full((1,), -1)) != 0
        row.setdefault("labels", row["input_ids"].masked_fill(starts | (mask == 0), -100))
        return row

    def _padded(self, name: str, values: torch.Tensor, length: int) -> torch.Tensor:
        padding = PADDING.get(name, 0 if name == "attention_mask" else self.pad_token_id)
        return torch.nn.functional.pad(values, (0, length - values.shape[-1]), value=padding)


_OPTIONAL_COLUMNS = ("segment_ids", "labels", "position_ids", "attention_mask", "negatives")


def _pad_token_id(tokenizer: PreTrainedTokenizerBase | None) -> int:
    pad = getattr(tokenizer, "pad_token_id", None)
    return 0 if pad is None else pad


def _tokens(dataset, tokenizer: PreTrainedTokenizerBase | None, text_column: str, **options):
    """The documents as one column ``input_ids``."""
    columns = dataset.column_names or list(next(iter(dataset), {}))
    if "segment_ids" in columns:
        raise ValueError(f"dataset is packed already: it has columns {columns}; use its rows as they are.")
    if "input_ids" in columns:
        return dataset.select_columns(["input_ids"])
    if tokenizer is None:
        raise ValueError(f"tokenizer is None, but the dataset has no input_ids (its columns are {columns}); give one.")
    return tokenize_corpus(dataset, tokenizer, text_column, **options)


def _vector(ids) -> np.ndarray:
    """The tokens of an Arrow list, without a copy."""
    return np.empty(0, dtype=np.int32) if ids.values is None else ids.values.to_numpy(zero_copy_only=False)
