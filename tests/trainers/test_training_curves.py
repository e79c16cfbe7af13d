"""Curves of a run: the local fit against polyfit, derived metrics, and what becomes of values that are not finite."""

import json
import math

import numpy as np
import pytest

from hf_elm.trainers.training_curves import (
    FEWEST_LOGS,
    TrainingCurves,
    curves_of,
    draws_something,
    local_linear_fit,
    training_curves,
    window_of,
)


def monarc_records(count=12, seed=0):
    """Logs of a MonArc run with noise that LM and ELM share and a little of the ELM's own."""
    noise = np.random.default_rng(seed).normal(size=(2, count))
    records = []
    for i, (shared, own) in enumerate(noise.T):
        lm = 2.0 - 0.01 * i + 0.1 * shared
        gain = 0.02 + 0.001 * own
        records.append(
            {
                "step": 10 * i + 10,
                "loss": lm - gain,
                "lm_loss": lm,
                "elm_nll_bound": lm - gain,
                "z_hat": 1.0 + 0.01 * own,
            }
        )
    return records


@pytest.mark.parametrize("window", [3, 4, 7, 13])
def test_fit_is_that_of_polyfit_in_every_window(window):
    """1e-9: float64, other order of operations."""
    generator = np.random.default_rng(0)
    steps = np.cumsum(generator.integers(1, 5, size=13)).astype(float)
    values = generator.normal(size=13) + 0.3 * steps
    fit, error = local_linear_fit(steps, values, window)
    for i in range(13):
        first = min(max(i - window // 2, 0), 13 - window)
        x, y = steps[first : first + window], values[first : first + window]
        slope, level = np.polyfit(x, y, 1)
        design = np.stack([np.ones(window), x], 1)
        variance = np.sum((y - design @ [level, slope]) ** 2) / (window - 2)
        row = np.array([1.0, steps[i]])
        assert fit[i] == pytest.approx(level + slope * steps[i], abs=1e-9)
        expected = math.sqrt(variance * row @ np.linalg.inv(design.T @ design) @ row)
        assert error[i] == pytest.approx(expected, abs=1e-9)


def test_fit_of_a_line_is_the_line_without_error():
    steps = np.arange(1.0, 30.0)
    fit, error = local_linear_fit(steps, 5 - 0.25 * steps, 7)
    np.testing.assert_allclose(fit, 5 - 0.25 * steps, atol=1e-12)
    np.testing.assert_allclose(error, 0, atol=1e-7)


def test_band_covers_the_truth_about_as_often_as_a_standard_error_does():
    generator = np.random.default_rng(1)
    steps = np.arange(40.0)
    inside = []
    for _ in range(300):
        fit, error = local_linear_fit(steps, generator.normal(size=40), 15)
        inside.append(np.abs(fit[20]) < error[20])
    assert 0.58 < np.mean(inside) < 0.76  # 0.666 for t with 13 degrees of freedom; 300 draws: +- 0.08 is three errors


@pytest.mark.parametrize("window", [0, 2, 14])
def test_fit_refuses_windows_that_make_none(window):
    with pytest.raises(ValueError, match=f"window must be from 3 .* got {window}"):
        local_linear_fit(np.arange(13.0), np.arange(13.0), window)


def test_few_logs_have_no_fit_and_many_have_one():
    for count in (1, FEWEST_LOGS - 1, FEWEST_LOGS, 101):
        curve = curves_of(monarc_records(count), "run").curve("lm_loss")
        assert len(curve.values) == count
        assert len(curve.fit) == (count if count >= FEWEST_LOGS else 0)
    assert window_of(FEWEST_LOGS) <= FEWEST_LOGS
    assert window_of(1000) == 50


def test_gain_is_paired_so_that_its_band_is_narrower_than_those_of_its_parts():
    curves = curves_of(monarc_records(40), "run")
    gain, lm = curves.curve("gain_bound"), curves.curve("lm_loss")
    expected = [record["lm_loss"] - record["elm_nll_bound"] for record in monarc_records(40)]
    np.testing.assert_allclose(gain.values, expected, atol=1e-12)
    assert (gain.upper - gain.lower).mean() < 0.1 * (lm.upper - lm.lower).mean()


def test_log_z_is_the_log_of_the_mean_and_not_the_mean_of_the_logs():
    steps = list(range(1, 201))  # windows of 10
    values = [0.5, 1.5] * 100  # the mean is 1, the mean log below 0
    curve = TrainingCurves({"z_hat": (steps, values)}, {}, "run").curve("log_mean_z")
    assert abs(curve.fit[20:-20]).max() < 0.05
    assert np.mean(curve.values) < -0.1
    np.testing.assert_allclose(curve.values, np.log(values))
    assert (curve.lower < curve.fit).all()
    assert (curve.fit < curve.upper).all()


def test_what_is_not_finite_is_a_gap_and_no_part_of_the_fit():
    records = monarc_records(20)
    records[5]["lm_loss"], records[6]["lm_loss"], records[7]["lm_loss"] = None, math.inf, math.nan
    curve = curves_of(records, "run").curve("lm_loss")
    assert np.isnan(curve.values).sum() == 3
    assert len(curve.fit) == 17
    assert np.isfinite(curve.lower).all()
    assert 60.0 not in curve.fit_steps
    assert curves_of(records, "run").curve("nothing") is None


def test_panels_are_those_of_the_family():
    def names(records):
        return {name for panel in curves_of(records, "run").panels() for name in panel.names}

    monarc = names([*monarc_records(), {"step": 5, "grad_norm": 1.0, "eval_lm_loss": 2.0}])
    assert monarc == {"lm_loss", "elm_nll_bound", "gain_bound", "log_mean_z", "grad_norm"}
    assert names([{"step": 1, "loss": 3.0, "masked_accuracy": 0.1, "learning_rate": 1.0}]) == {
        "loss",
        "masked_accuracy",
    }
    retrieval = curves_of([{"step": 1, "loss": 3.0, "positive_cosine": 0.5, "negative_cosine": 0.1}], "run").panels()
    assert [(panel.names, panel.label) for panel in retrieval] == [
        (("loss",), "no unit"), (("positive_cosine", "negative_cosine"), "cosine"),
    ]  # fmt: skip
    assert not draws_something(curves_of([{"step": 1, "train_runtime": 2.0, "grad_norm": 1.0}], "run"))
    assert not draws_something(curves_of([{"step": 1, "loss": None}], "run"))


def test_evaluations_have_the_same_derived_metrics():
    record = {"step": 4, "eval_lm_loss": 2.0, "eval_elm_nll_bound": 1.9, "eval_z_hat": math.e}
    curves = curves_of([record], "run")
    assert curves.curve("gain_bound", evaluation=True).values == pytest.approx([0.1])
    assert curves.curve("log_mean_z", evaluation=True).values == pytest.approx([1.0])
    assert curves.curve("gain_bound") is None


def test_a_file_and_a_log_history_give_the_same_curves(tmp_path):
    records = monarc_records()
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert training_curves(tmp_path).training == curves_of(records, "run").training
