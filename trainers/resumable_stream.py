"""A rank's part of a stream as an endless series of rows whose place can be saved and found again without reading up to it."""

import warnings
from collections.abc import Iterator

import torch
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node

from .packing import PackedRows


SNAPSHOT_INTERVAL = (
    16  # batches between the states that a loading process sends; at most so many are made again at resume
)


def rank_part(stream: IterableDataset, rank: int, world_size: int) -> IterableDataset:
    """The documents of ``stream`` that ``rank`` trains on; over all ranks each document is there once.

    Whole files where there are at least ``world_size`` of them, else row groups of Parquet files, else every
    ``world_size``-th document. The row groups of Parquet files become shards, so that a resumed stream reads at most one of them
    again; a file of another format is read again from its beginning, without being tokenised.
    """
    if world_size > 1 and stream.num_shards >= world_size:
        return stream.shard(world_size, rank, contiguous=False).reshard()  # only the own files' footers are read
    stream = stream.reshard()
    return split_dataset_by_node(stream, rank, world_size) if world_size > 1 else stream


def is_resumable(rows) -> bool:
    """Whether ``rows`` is a stream whose place can be saved."""
    return isinstance(rows, (IterableDataset, PackedRows))


class EndlessRows(torch.utils.data.IterableDataset):
    """Rows of a stream, epoch after epoch, so that ranks whose parts differ in length stay in step.

    ``load_state_dict(state_dict())`` goes on with the very next row. The state holds the epoch and the state of the rows: the
    place in the stream and, of packed rows, the pieces of documents that no row holds yet.

    Args:
        rows: `PackedRows`, or a `datasets.IterableDataset` of tokenised rows.
    """

    def __init__(self, rows: PackedRows | IterableDataset):
        super().__init__()
        self.rows = rows
        self.epoch = 0
        self._loaded = False

    def __iter__(self) -> Iterator[dict]:
        if not self._loaded:
            self.epoch = 0
            self.rows.set_epoch(0)
            self.rows.load_state_dict({}) if isinstance(self.rows, IterableDataset) else None
        empty = not self._loaded
        self._loaded = False
        while True:
            for row in self.rows:
                empty = False
                yield row
            if empty:
                raise ValueError(
                    "a process found no row in its part of the stream; train with fewer processes or fewer "
                    "dataloader_num_workers, or on a dataset of more files."
                )
            empty = True
            self.epoch += 1
            self.rows.set_epoch(self.epoch)

    def state_dict(self) -> dict:
        return {"epoch": self.epoch, "rows": self.rows.state_dict()}

    def load_state_dict(self, state: dict):
        self.epoch = state["epoch"]
        self.rows.set_epoch(self.epoch)
        self.rows.load_state_dict(state["rows"])
        self._loaded = True


def resumable_loader(rows, batch_size: int, collate, args, state: dict | None = None):
    """Endless batches of ``rows`` with ``state_dict()``; a `torchdata.stateful_dataloader.StatefulDataLoader`.

    Args:
        rows: this rank's rows; see `is_resumable`.
        collate: list of rows -> batch.
        args: TrainingArguments with ``seed`` and the ``dataloader_*`` fields.
        state: where to go on; None = at the beginning.

    Raises:
        ImportError: torchdata is missing.
    """
    try:
        from torchdata.stateful_dataloader import StatefulDataLoader
    except ImportError:
        raise ImportError(
            'training from a stream needs torchdata; install it with pip install "hf_elm[train]".'
        ) from None
    workers = args.dataloader_num_workers
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'set_vital' is deprecated")  # torchdata 0.11 on newer torch
        loader = StatefulDataLoader(
            EndlessRows(rows),
            batch_size=batch_size,
            collate_fn=collate,
            num_workers=workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context if workers else None,
            generator=torch.Generator().manual_seed(args.seed),  # else its start would draw from the model's generator
            snapshot_every_n_steps=SNAPSHOT_INTERVAL if workers else 1,
        )
    if state is not None:
        loader.load_state_dict(state)
    return loader
