"""Calibration: bins against a loop, ECE of models that are right and wrong by construction, and its intervals."""

import numpy as np
import pytest
import torch

from hf_elm.plots.token_calibration import (
    _EDGES,
    TOP_BINS,
    ReliabilityBins,
    plot_token_calibration,
    token_calibration,
)
from tests.hf_elm.plots.tiny_energies import brute_force
from tests.hf_elm.tiny_evaluation import VOCAB, make_model, make_rows


QUIET = {"progress": False}


def own_text(model, rows, length, seed=0):
    """Rows drawn from p_ELM itself, each one document."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = torch.arange(VOCAB).view(1, VOCAB, 1)
    ids = torch.randint(0, VOCAB, (rows, 1), generator=generator)
    for _ in range(length - 1):
        longer = torch.cat([ids, torch.zeros(rows, 1, dtype=torch.long)], 1)
        candidates = vocabulary.expand(rows, -1, longer.shape[1])
        scores = model.score_candidates(longer, candidates, max_rows=4096)
        weights = (scores.log_probs[..., -1] - scores.energies[..., -1]).softmax(1)
        longer[:, -1] = torch.multinomial(weights, 1, generator=generator)[:, 0]
        ids = longer
    return [{"input_ids": row.tolist()} for row in ids]


def test_bins_are_those_of_a_loop_over_brute_force():
    model = make_model()
    rows = [{"input_ids": row["input_ids"]} for row in make_rows(3)]
    data = token_calibration(model, rows, **QUIET)
    top = {name: np.zeros((3, TOP_BINS)) for name in ("lm", "elm")}
    pooled = {name: np.zeros((3, len(_EDGES) - 1)) for name in ("lm", "elm")}
    for row in rows:
        ids = torch.tensor(row["input_ids"])
        log_probs, energies, log_z = brute_force(model, ids)
        for name, values in (("lm", log_probs), ("elm", log_probs - energies - log_z[:, None])):
            for place, target in enumerate(ids[1:].tolist()):
                probs = values[place].exp()
                best = int(probs.argmax())
                column = min(int(probs[best] * TOP_BINS), TOP_BINS - 1)
                top[name][:, column] += [1, probs[best], best == target]
                for token, p in enumerate(probs.tolist()):
                    column = max(b for b in range(len(_EDGES) - 1) if p >= _EDGES[b])
                    pooled[name][:, column] += [1, p, token == target]
    for name in ("lm", "elm"):
        for expected, bins in ((top[name], data.top[name]), (pooled[name], data.pooled[name])):
            found = np.stack([bins.counts.sum(0), bins.probs.sum(0), bins.hits.sum(0)])
            np.testing.assert_allclose(found, expected, atol=1e-9)
        gaps = np.abs(top[name][2] - top[name][1]).sum() / top[name][0].sum()
        assert data.ece(name) == pytest.approx(gaps, abs=1e-12)
    assert data.is_exact
    assert data.documents == 3


def test_the_model_that_wrote_the_text_is_calibrated_and_the_other_is_not():
    """Text of the ELM: its frequencies agree within noise (640 tokens: 0.05 of ECE), the LM's, whose energy is large, do not."""
    model = make_model(energy_scale=1.5, lm_scale=2.0)
    data = token_calibration(model, own_text(model, 40, 17), **QUIET)
    assert data.ece("elm") < 0.09
    assert data.ece("lm") > 2 * data.ece("elm")
    low, high = data.intervals["difference"]
    assert low < high < 0
    for name in ("lm", "elm"):
        ends = data.intervals[name]
        assert 0 <= ends[0] < data.ece(name) < ends[1]
    total = {name: (bins.probs.sum() / data.tokens, bins.hits.sum()) for name, bins in data.pooled.items()}
    assert total["elm"] == pytest.approx((1.0, data.tokens))  # all probabilities, and one hit at every place


def test_expected_calibration_error_by_hand():
    bins = ReliabilityBins(
        counts=np.array([[2.0, 0, 1], [0, 0, 1]]), probs=np.array([[0.5, 0, 0.9], [0, 0, 0.8]]), hits=np.array([[1.0, 0, 0], [0, 0, 1]])
    )  # fmt: skip
    assert bins.calibration_error() == pytest.approx([(0.5 + 0.7) / 4])
    assert bins.calibration_error(np.array([[2.0, 0.0], [0.0, 2.0]])) == pytest.approx([2.8 / 6, 0.4 / 2])
    mean, frequency = bins.means()
    assert mean[[0, 2]] == pytest.approx([0.25, 0.85])
    assert frequency[[0, 2]] == pytest.approx([0.5, 0.5])
    assert np.isnan(mean[1])


def test_sampled_log_z_claims_the_likeliest_tokens_only():
    model = make_model()
    options = {"method": "sampled", "exact_top": 4, "num_samples": 6}
    data = token_calibration(model, make_rows(4), **options, **QUIET)
    assert not data.is_exact
    assert data.candidates == 4
    assert data.pooled["elm"].counts.sum() == 4 * data.tokens
    assert len(data.top_ends) == 2
    ax = plot_token_calibration(data).axes[0]
    assert "among the LM's 4 likeliest" in ax.get_title()
    assert any("at the ends of log Z" in text.get_text() for text in ax.get_legend().get_texts())


def test_one_document_has_no_interval_and_is_drawn(tmp_path):
    data = token_calibration(make_model(), [{"input_ids": list(range(9))}], **QUIET)
    assert data.intervals == {}
    figure = plot_token_calibration(data, tmp_path / "calibration.png")
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == [f"LM: ECE {data.ece('lm'):.4f}", f"ELM: ECE {data.ece('elm'):.4f}"]
    assert (tmp_path / "calibration.png").is_file()


def test_the_same_seed_gives_the_same_intervals():
    model, rows = make_model(), make_rows(5)
    first, second = (token_calibration(model, rows, seed=3, **QUIET).intervals for _ in range(2))
    assert first == second
