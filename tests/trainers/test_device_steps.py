"""A training step on a device never waits for it: no value is read on the host, and no shape depends on values.

Shown on the meta device, which has shapes and no values: ``.item()``, ``bool(tensor)``, ``nonzero`` and boolean indexing raise
there. The checks of values that the models make on the CPU are off on it, as on every other device.
"""

import contextlib

import datasets
import pytest
import torch

from hf_elm.trainers import refinement_trainer, residual_energy_trainer
from hf_elm.trainers.packing import pack_rows
from tests.trainers.two_rank_family_run import TRAINERS


THREE = ("residual_energy", "masked_lm", "refinement")  # the trainers of rows of tokens


@pytest.fixture(autouse=True)
def _as_on_meta(monkeypatch):
    for module in (residual_energy_trainer, refinement_trainer):  # there are none on meta, as on XLA
        monkeypatch.setattr(module, "seeded_generator", lambda seed, device: None)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())  # nor is there autocast
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *args: False)


def meta_batch(trainer):
    batch = next(iter(trainer.get_train_dataloader()))
    if hasattr(trainer, "masked"):
        batch = trainer.masked(batch, seed=0, probability=0.3)
    return {name: value.to("meta") for name, value in batch.items()}


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("name", THREE)
def test_a_step_reads_no_values(name, drawn, tmp_path):
    trainer = TRAINERS[name](tmp_path, 1, per_device_train_batch_size=4)
    trainer.model.to("meta").train()
    batch = meta_batch(trainer)
    if drawn:
        batch.pop("negatives", None)
    assert trainer.args.stop_on_nonfinite
    items = trainer._get_num_items_in_batch([batch], torch.device("meta"))
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=items)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
    trainer._watch({"grad_norm": norm})
    torch.optim.AdamW(trainer.model.parameters(), lr=1e-3).step()
    trainer.train_window.add({"loss": loss}, items, finished_step=True)
    assert loss.shape == ()
    assert trainer.finite_guard._values, "the guard keeps its values on the device until a log"
    assert all(value.device.type == "meta" for value in trainer.finite_guard._values)


def test_the_meta_device_would_notice():
    values = torch.zeros(3, device="meta")
    for read in (
        lambda: values[0].item(),
        lambda: bool(values[0]),
        lambda: values[values > 0],
        lambda: values.nonzero(),
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()


def test_packed_rows_can_all_have_one_length():
    """What XLA compiles once."""
    documents = [{"input_ids": list(range(2, 2 + length))} for length in (1, 7, 3, 19, 2, 11, 5)]
    rows = pack_rows(datasets.Dataset.from_list(documents), None, 8, drop_last=True)
    assert {len(row["input_ids"]) for row in rows} == {8}
    assert len(rows) == sum(len(row["input_ids"]) for row in documents) // 8
