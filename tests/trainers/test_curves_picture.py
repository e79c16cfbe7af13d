"""``curves.png`` at the end of a training: whole, by the main process alone, never over the user's file, never fatal."""

import json
import logging
import os
import sys

import pytest
from PIL import Image

from hf_elm.model_cards.card_facts import has_curves
from hf_elm.trainers import ResidualEnergyTrainer
from hf_elm.trainers.curves_picture import (
    PICTURE_FILE,
    is_own_picture,
    plot_training_curves,
    write_curves_picture,
)
from hf_elm.trainers.training_curves import curves_of
from tests.trainers.test_training_curves import monarc_records
from tests.trainers.tiny_training import quiet_config, ragged_rows, tiny_model


def train(folder, resume=None, **fields):
    args = quiet_config(folder, **({"curves": True} | fields))
    trainer = ResidualEnergyTrainer(tiny_model(), args, ragged_rows(12), ragged_rows(4, seed=1))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_a_run_ends_with_its_picture_and_a_resumed_one_with_a_new_one(tmp_path):
    folder = tmp_path / "run"
    train(folder, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2)
    picture = folder / PICTURE_FILE
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert min(image.size) > 300
    assert is_own_picture(picture)
    assert has_curves(folder)  # the card knows it by the same mark
    before = picture.read_bytes()
    train(folder, resume=True, max_steps=5, save_strategy="no", eval_strategy="steps", eval_steps=2)
    assert picture.read_bytes() != before
    assert is_own_picture(picture)
    assert not [name for name in os.listdir(folder) if name.startswith(".")]  # nothing half-written


def test_the_users_file_is_kept(tmp_path, caplog):
    picture = tmp_path / PICTURE_FILE
    picture.write_bytes(b"mine")
    with caplog.at_level(logging.WARNING):
        trainer = train(tmp_path)
    assert trainer.state.global_step == 3
    assert picture.read_bytes() == b"mine"
    assert "is kept" in caplog.text
    assert not has_curves(tmp_path)


def test_curves_false_draws_nothing(tmp_path):
    train(tmp_path, curves=False)
    assert not (tmp_path / PICTURE_FILE).exists()


def test_only_the_main_process_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(ResidualEnergyTrainer, "is_world_process_zero", lambda self: False)
    train(tmp_path)
    assert not (tmp_path / PICTURE_FILE).exists()


def test_without_matplotlib_the_training_ends_well_with_one_line(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with caplog.at_level(logging.WARNING):
        trainer = train(tmp_path)
    assert trainer.state.global_step == 3
    assert not (tmp_path / PICTURE_FILE).exists()
    (record,) = [record for record in caplog.records if PICTURE_FILE in record.getMessage()]
    assert 'pip install "hf_elm[plot]"' in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_disk_that_cannot_be_written_does_not_fail_the_run(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_elm.trainers.curves_picture.os.replace", full)
    with caplog.at_level(logging.WARNING):
        assert write_curves_picture(monarc_records(), tmp_path) is None
    assert "No space left" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_log_without_metrics_has_no_picture(tmp_path):
    assert write_curves_picture([{"step": 3, "train_runtime": 1.0}], tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_the_picture_shows_the_logs_the_fit_and_its_band():
    figure = plot_training_curves(curves_of([*monarc_records(12), {"step": 60, "eval_lm_loss": 1.9}], "a $run$"))
    figure.canvas.draw()
    loss, gain, normaliser = figure.axes
    assert [text.get_text() for text in loss.get_legend().get_texts()] == [
        "LM",
        "LM, held out",
        "ELM, at most (bound)",
    ]
    assert len(loss.collections) == 2  # a band each
    assert loss.lines[0].get_ydata().tolist() == [record["lm_loss"] for record in monarc_records(12)]
    assert loss.get_ylabel() == "nats/token"
    assert gain.get_ylabel().endswith("(nats/token)")
    assert normaliser.get_ylabel().endswith("(nats)")


def test_a_wild_start_leaves_the_axis_and_the_title_says_so():
    records = monarc_records(60)
    records[0]["lm_loss"] = records[0]["elm_nll_bound"] = 9.0
    (loss, *_) = plot_training_curves(curves_of(records, "run")).axes
    assert loss.get_ylim()[1] < 3
    assert "9" in loss.get_title()
    (calm, *_) = plot_training_curves(curves_of(monarc_records(60), "run")).axes
    assert calm.get_title() == "loss"


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_short_runs_are_drawn(count):
    records = monarc_records(count)
    assert json.dumps(records)
    plot_training_curves(curves_of(records, "run")).canvas.draw()
