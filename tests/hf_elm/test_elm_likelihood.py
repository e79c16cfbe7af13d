"""The record keeps what it is given, on disk and on screen."""

import io
import json

import pytest
from rich.console import Console

from hf_elm.elm_likelihood import ElmLikelihood


def record(**fields):
    """A sampled result with plausible numbers."""
    return ElmLikelihood(
        **{
            "method": "sampled",
            "num_tokens": 1234,
            "num_documents": 9,
            "num_rows": 5,
            "vocab_size": 4096,
            "num_samples": 4,
            "exact_top": 2,
            "seed": 0,
            "lm_nll": 3.5,
            "lm_nll_se": 0.0123,
            "elm_nll_lower": 3.41,
            "elm_nll_upper": 3.44,
            "elm_nll_upper_se": 0.0131,
            "gain_lower": 0.06,
            "gain_upper": 0.09,
            "mean_energy": -0.05,
            "mean_log_z_lower": -0.04,
            "mean_log_z_upper": -0.01,
            "mean_z": 0.98,
            "ess_fraction": 0.91,
            "diagnostics": {"claimed_nll": 3.45},
            **fields,
        }
    )


def printed(result):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(result.table())
    return " ".join(console.export_text().split())  # the title wraps


def test_json_is_whole_and_never_overwritten_unasked(tmp_path):
    result = record()
    path = result.to_json(tmp_path / "new" / "likelihood.json")
    saved = json.loads(path.read_text())
    assert saved.pop("unit") == "nats/token"
    assert ElmLikelihood(**saved) == result
    before = path.read_text()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        record(lm_nll=9.0).to_json(path)
    assert path.read_text() == before
    record(lm_nll=9.0).to_json(path, overwrite=True)
    assert json.loads(path.read_text())["lm_nll"] == 9.0
    assert [p.name for p in path.parent.iterdir()] == ["likelihood.json"]


def test_a_failed_write_leaves_the_old_file_and_no_scraps(tmp_path, monkeypatch):
    path = record().to_json(tmp_path / "likelihood.json")
    before = path.read_text()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_elm.elm_likelihood.os.replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        record(lm_nll=9.0).to_json(path, overwrite=True)
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["likelihood.json"]


def test_an_infinite_bound_stays_readable_json(tmp_path):
    path = record(elm_nll_upper=float("inf")).to_json(tmp_path / "likelihood.json")
    assert json.loads(path.read_text())["elm_nll_upper"] == "inf"


@pytest.mark.parametrize("show", [str, printed])
def test_text_and_table_show_the_interval(show):
    shown = show(
        record(equal_compute_lm_nll=3.3, gain_over_equal_compute_lower=-0.14, gain_over_equal_compute_upper=-0.11)
    )
    for words in (
        "1,234 tokens in 9 documents", "2 tokens exact, 4 samples", "nats/token", "SE by document", "3.5000", "0.0123",
        "ELM, at least", "3.4100", "ELM, at most", "0.0131", "+0.0600", "LM of equal compute", "-0.1400", "n/a",
        "E[log Z] in [-0.0400, -0.0100] nats", "effective samples 91.0%",
    ):  # fmt: skip
        assert words in shown
    assert "3.45" not in shown  # what assumes Z = 1 is never printed


@pytest.mark.parametrize("show", [str, printed])
def test_text_and_table_show_an_exact_value_once(show):
    shown = show(record(method="exact", elm_nll=3.42, gain=0.08, mean_log_z=-0.03, elm_bits_per_byte=1.25))
    for words in ("log Z exact over 4,096 tokens", "3.4200", "+0.0800", "E[log Z] -0.0300", "1.2500"):
        assert words in shown
    assert "at least" not in shown


@pytest.mark.parametrize("show", [str, printed])
def test_the_certified_interval_is_named_as_such(show):
    ends = {"certified_elm_nll_lower": 3.0, "certified_elm_nll_upper": 3.9}
    assert "ELM, at most, certified" in show(record(**ends))
    alone = show(record(method="certified", num_samples=0, mean_z=None, ess_fraction=None, **ends))
    assert "log Z certified from 2 tokens and the energy bound" in alone
    assert "mean Z" not in alone
