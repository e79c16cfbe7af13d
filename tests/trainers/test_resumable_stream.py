"""A stream goes on in the middle of a document with the very next row, and finds its place without reading up to it."""

import hashlib
import itertools
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, IterableDataset, load_dataset
from datasets.packaged_modules.parquet import parquet

from hf_elm.trainers.packing import PackingCollator, iter_packed_rows
from hf_elm.trainers.resumable_stream import EndlessRows, rank_part, resumable_loader
from hf_elm.trainers.stream_state import read_stream_state, write_stream_state
from hf_elm.trainers.tokenization import build_tokenizer


ROW_GROUP = 20  # documents; a resumed stream reads at most one group again
MAP_BATCH = 100  # documents that are tokenised at a time
LENGTH, BATCH = 16, 2


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer("byte")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three Parquet files of 331, 332, 333 documents of 1 to 150 bytes."""
    folder, draws, number = tmp_path_factory.mktemp("shards"), np.random.default_rng(0), itertools.count()
    for shard in range(3):
        texts = [f"{next(number)} " + draws.bytes(draws.integers(0, 75)).hex() for _ in range(331 + shard)]
        path = folder / f"{shard}.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=ROW_GROUP)
    return folder


def stream_of(shards, files="*.parquet") -> IterableDataset:
    return load_dataset("parquet", data_files=str(shards / files), split="train", streaming=True)


def loader_of(shards, tokenizer, state=None, strategy="wrapped", workers=0, files="*.parquet"):
    part = rank_part(stream_of(shards, files), 0, 1)
    rows = iter_packed_rows(part, tokenizer, LENGTH, strategy=strategy, shuffle_buffer_size=7)
    return resumable_loader(rows, BATCH, PackingCollator(tokenizer.pad_token_id), arguments(workers), state)


def arguments(workers=0, world_size=1, rank=0):
    return SimpleNamespace(
        seed=0,
        world_size=world_size,
        process_index=rank,
        dataloader_num_workers=workers,
        dataloader_pin_memory=False,
        dataloader_prefetch_factor=2 if workers else None,
        dataloader_multiprocessing_context=None,
    )


def hashes(batches, count):
    return [hashlib.sha256(b["input_ids"].numpy().tobytes()).hexdigest() for b in itertools.islice(batches, count)]


@pytest.mark.parametrize(("strategy", "cut", "count"), [("wrapped", 1001, 1000), ("greedy", 700, 300)])
def test_the_next_batches_are_the_same(shards, tokenizer, tmp_path, strategy, cut, count):
    """Also over the end of the stream, which goes round: it has about 2400 batches."""
    whole = loader_of(shards, tokenizer, strategy=strategy)
    batches = iter(whole)
    hashes(batches, cut)
    write_stream_state(tmp_path, whole, arguments())
    expected = hashes(batches, count)
    assert len({*expected}) == count
    state = read_stream_state(tmp_path, arguments(), BATCH)
    waiting = state["dataset_state"]
    assert sum(len(tokens) for _, tokens in waiting["rows"]["packer"]["waiting"]) % LENGTH, "within a document"
    assert hashes(loader_of(shards, tokenizer, state, strategy), count) == expected


def test_a_loading_process_goes_on_too(shards, tokenizer, tmp_path):
    """Between two snapshots of its state, and in the second epoch."""
    whole = loader_of(shards, tokenizer, workers=1, files="0.parquet")
    batches = iter(whole)
    assert hashes(batches, 30) == hashes(loader_of(shards, tokenizer, files="0.parquet"), 30)
    hashes(batches, 983)
    write_stream_state(tmp_path, whole, arguments(1))
    state = read_stream_state(tmp_path, arguments(1), BATCH)
    expected = hashes(batches, 40)
    assert hashes(loader_of(shards, tokenizer, state, workers=1, files="0.parquet"), 40) == expected


def test_documents_read_at_resume_do_not_depend_on_the_position(shards, tokenizer, monkeypatch):
    """Read from the files until the first batch is there: a batch to tokenise and what rounds it up to whole row groups."""
    read = []
    generate = parquet.Parquet._generate_tables

    def counting(self, *args, **kwargs):
        for key, table in generate(self, *args, **kwargs):
            read.append(len(table))
            yield key, table

    monkeypatch.setattr(parquet.Parquet, "_generate_tables", counting)
    whole = loader_of(shards, tokenizer)
    batches, states = iter(whole), []
    for _ in range(4):
        hashes(batches, 550)
        states.append((whole.state_dict(), sum(read)))
    for state, position in states:
        resumed = loader_of(shards, tokenizer, state)
        read.clear()
        next(iter(resumed))
        assert sum(read) <= 2 * MAP_BATCH + 2 * ROW_GROUP, position
    assert states[-1][1] > 3 * (2 * MAP_BATCH + 2 * ROW_GROUP), "the last position is far beyond what was read"


@pytest.mark.parametrize(("files", "ranks"), [("*.parquet", 1), ("*.parquet", 2), ("*.parquet", 3), ("0.parquet", 5)])
def test_ranks_share_the_documents(shards, files, ranks):
    parts = [[row["text"] for row in rank_part(stream_of(shards, files), rank, ranks)] for rank in range(ranks)]
    assert sorted(itertools.chain(*parts)) == sorted(row["text"] for row in stream_of(shards, files))
    assert all(parts)


def test_a_stream_of_token_ids_goes_round(tokenizer):
    ids = Dataset.from_dict({"input_ids": [[i, i + 1] for i in range(7)]})
    rows = EndlessRows(ids.to_iterable_dataset())
    seen = [row["input_ids"] for row in itertools.islice(rows, 17)]
    assert seen == [[i % 7, i % 7 + 1] for i in range(17)]
    state = rows.state_dict()
    resumed = EndlessRows(ids.to_iterable_dataset())
    resumed.load_state_dict(state)
    assert next(iter(resumed))["input_ids"] == [17 % 7, 17 % 7 + 1]
    assert next(iter(rows))["input_ids"] == [0, 1], "a new iteration begins at the beginning"


def test_a_part_without_rows_is_refused():
    rows = EndlessRows(Dataset.from_dict({"input_ids": [[1]]}).to_iterable_dataset().filter(lambda row: False))
    with pytest.raises(ValueError, match="no row in its part of the stream"):
        next(iter(rows))


def test_states_of_other_runs_are_refused(shards, tokenizer, tmp_path):
    loader = loader_of(shards, tokenizer)
    for rank in range(2):
        write_stream_state(tmp_path, loader, arguments(world_size=2, rank=rank))
    for world_size, rank in ((1, 0), (4, 3)):
        with pytest.raises(ValueError, match=rf"world size\) of 2, this run has {world_size}"):
            read_stream_state(tmp_path, arguments(world_size=world_size, rank=rank), BATCH)
    with pytest.raises(ValueError, match="dataloader_num_workers = 0, this run has 3"):
        read_stream_state(tmp_path, arguments(3, world_size=2), BATCH)
    with pytest.raises(ValueError, match="per_device_train_batch_size = 2, this run has 5"):
        read_stream_state(tmp_path, arguments(world_size=2), 5)
    with pytest.raises(ValueError, match=r"does not say where.*ignore_data_skip"):
        read_stream_state(tmp_path / "empty", arguments(), BATCH)
    file = tmp_path / "stream_state_0.pt"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"stream_state_0\.pt is damaged"):
        read_stream_state(tmp_path, arguments(world_size=2), BATCH)
