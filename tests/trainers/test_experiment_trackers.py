"""Metrics in trackers under their own names, as the numbers that metrics.jsonl has; and a missing tracker's error."""

import json
import math
import sqlite3

import pytest

from hf_elm.trainers import (
    MaskedLMConfig,
    RefinementConfig,
    ResidualEnergyConfig,
    ResidualEnergyTrainer,
    RetrievalConfig,
)
from hf_elm.trainers import experiment_trackers as trackers
from tests.trainers.tiny_training import quiet_config, ragged_rows, tiny_model


METRICS = ("lm_loss", "elm_nll_bound", "energy_loss", "z_hat", "energy_data", "energy_negatives")


def train(folder, report_to):
    args = quiet_config(
        folder, report_to=report_to, run_name="run", project="tracked", eval_strategy="steps", eval_steps=2
    )
    ResidualEnergyTrainer(tiny_model(), args, ragged_rows(12), ragged_rows(4, seed=1)).train()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def logged(records, name):
    return {record["step"]: record[name] for record in records if name in record}


def test_tensorboard_has_every_metric_under_its_name(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    records = train(tmp_path, "tensorboard")
    (folder,) = (tmp_path / "runs").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    for prefix, own in (("train/", ""), ("eval/", "eval_")):
        for name in METRICS:
            seen = {event.step: event.value for event in events.Scalars(prefix + name)}
            assert seen == pytest.approx(logged(records, own + name), rel=1e-6)  # stored as float32
            assert all(map(math.isfinite, seen.values()))


def test_trackio_has_every_metric_under_its_name(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    from trackio import sqlite_storage
    from trackio import utils as trackio_utils

    for module in (trackio_utils, sqlite_storage):  # read from the environment when the package is imported
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    assert trackio is not None
    records = train(tmp_path / "run", "trackio")
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = [json.loads(row[0]) for row in connection.execute("select metrics from metrics order by id")]
    for prefix, own in (("train/", ""), ("eval/", "eval_")):
        for name in METRICS:
            seen = {row["train/global_step"]: row[prefix + name] for row in rows if prefix + name in row}
            assert seen == pytest.approx(logged(records, own + name))
            assert all(isinstance(value, float) for value in seen.values())


def test_without_a_tracker_there_is_the_file(tmp_path):
    records = train(tmp_path, "none")
    for name in METRICS:
        assert set(logged(records, name)) == {1, 2, 3}


@pytest.mark.parametrize("config", [ResidualEnergyConfig, RefinementConfig, MaskedLMConfig, RetrievalConfig])
@pytest.mark.parametrize("name", trackers.IN_THE_EXTRA)
def test_a_missing_package_is_named_before_training(tmp_path, monkeypatch, config, name):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(ImportError, match=rf'report_to={name} .* pip install "hf_elm\[tracking\]"'):
        config(output_dir=str(tmp_path / "run"), report_to=[name], use_cpu=True)
    assert not (tmp_path / "run").exists()


def test_what_the_extra_lacks_is_left_to_transformers(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda package: None)
    trackers.require_trackers(["mlflow"])
    trackers.require_trackers([])
