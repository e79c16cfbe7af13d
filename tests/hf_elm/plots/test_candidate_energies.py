"""Candidates, energies and normalisers against brute force over a small vocabulary; the pictures made of them."""

import pytest
import torch
from torch.testing import assert_close

from hf_elm.evaluation import evaluate_elm
from hf_elm.plots.candidate_energies import candidate_energies
from hf_elm.plots.residual_energies import DRAWS, plot_residual_energies, residual_energies
from tests.hf_elm.plots.tiny_energies import brute_force
from tests.hf_elm.tiny_evaluation import VOCAB, make_model, make_rows


QUIET = {"progress": False}


def single_rows(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(0, VOCAB, (n,), generator=generator).tolist()} for n in lengths]


def test_exact_candidates_are_brute_force():
    """1e-9: float64, sums in another order."""
    model, rows = make_model(), single_rows(7)
    (batch,) = candidate_energies(model, rows, **QUIET)
    ids = torch.tensor(rows[0]["input_ids"])
    log_probs, energies, log_z = brute_force(model, ids)
    assert batch.is_exact
    assert_close(batch.candidate_log_probs, log_probs, atol=1e-9, rtol=1e-9)
    assert_close(batch.candidate_energies, energies, atol=1e-9, rtol=1e-9)
    assert_close(batch.log_z, log_z, atol=1e-9, rtol=1e-9)
    assert_close(batch.log_z_lower, batch.log_z_upper)
    assert torch.equal(batch.targets, ids[1:])
    assert_close(batch.energies, energies.gather(1, ids[1:, None])[:, 0], atol=1e-9, rtol=1e-9)
    assert_close(batch.log_probs, log_probs.gather(1, ids[1:, None])[:, 0], atol=1e-9, rtol=1e-9)
    assert batch.describe() == f"log Z exact over {VOCAB} tokens"


def test_sampled_weights_estimate_the_lm_and_its_ends_enclose_log_z():
    model, rows = make_model(), single_rows(9, 8, 9)
    whole = {"max_tokens": None, **QUIET}  # rows in their own order, whatever the seed
    (exact,) = candidate_energies(model, rows, **whole)
    sampled = []
    for seed in range(30):
        sampled += candidate_energies(model, rows, method="sampled", exact_top=3, num_samples=40, seed=seed, **whole)
    expected = (exact.log_weights.exp() * exact.candidate_energies).sum(1)
    found = torch.stack([(each.log_weights.exp() * each.candidate_energies).sum(1) for each in sampled])
    assert ((found.mean(0) - expected).abs() < 5 * (found.std(0) / 30**0.5 + 1e-4)).all()
    for each in sampled:
        assert_close(each.log_weights.logsumexp(1), torch.zeros(len(each.targets)).double(), atol=1e-12, rtol=0)
        assert not each.is_exact
        assert "3 likeliest tokens exact, 40 samples" in each.describe()
    lower, upper = (torch.stack([getattr(each, f"log_z_{end}") for each in sampled]) for end in ("lower", "upper"))
    noise = 5 * lower.mean(1).std() / 30**0.5
    assert lower.mean() - noise < exact.log_z.mean() < upper.mean() + noise
    assert (lower <= upper + 1e-12).all()


def test_energies_agree_with_the_likelihood_of_the_same_rows():
    model, rows = make_model(), make_rows(5)
    data = residual_energies(model, rows, **QUIET)
    likelihood = evaluate_elm(model, rows, progress=False)
    assert len(data.data) == likelihood.num_tokens
    assert len(data.clusters.unique()) == likelihood.num_documents
    assert data.estimate(data.data).value == pytest.approx(likelihood.mean_energy, abs=1e-9)
    assert data.estimate(data.log_z_lower).value == pytest.approx(likelihood.mean_log_z, abs=1e-9)
    gain = data.estimate(data.gains)
    assert gain.value == pytest.approx(likelihood.gain, abs=1e-9)
    assert gain.standard_error == pytest.approx(likelihood.gain_se, abs=1e-9)


def test_draws_are_of_the_two_models():
    """E_LM[E] and E_ELM[E] by sums over the vocabulary; 5 standard errors."""
    model, rows = make_model(), single_rows(*[9] * 40)
    data = residual_energies(model, rows, **QUIET)
    exact = list(candidate_energies(model, rows, max_tokens=None, **QUIET))
    energies, weights = (
        torch.cat([getattr(b, name) for b in exact]) for name in ("candidate_energies", "log_weights")
    )
    for draws, log_weights in ((data.lm_draws, weights), (data.elm_draws, weights - energies)):
        expected = (log_weights.softmax(1) * energies).sum(1).mean()
        assert draws.shape == (320, DRAWS)
        assert abs(draws.mean() - expected) < 5 * draws.std() / draws.numel() ** 0.5
    assert data.elm_draws.mean() < data.lm_draws.mean()


def test_separation_is_a_half_without_an_energy_and_counts_wins():
    model = make_model(energy_scale=0.0)
    flat = residual_energies(model, single_rows(9, 9, 9), **QUIET)
    assert flat.separation().value == 0.5
    data = residual_energies(make_model(), single_rows(9, 9, 9), **QUIET)
    wins = sum(float((d < e) + 0.5 * (d == e)) for d, row in zip(data.data, data.lm_draws, strict=True) for e in row)
    assert data.separation().value == pytest.approx(wins / data.lm_draws.numel())


def test_max_tokens_is_kept_to_the_token_and_the_first_of_documents_are_left_out():
    model = make_model()
    for limit in (1, 5, 13):
        assert len(residual_energies(model, make_rows(6), max_tokens=limit, **QUIET).data) == limit
    rows = make_rows(3)
    counted = sum(label != -100 for row in rows for label in row["labels"])
    assert len(residual_energies(model, rows, max_tokens=None, **QUIET).data) == counted


@pytest.mark.parametrize("sampled", [False, True])
def test_the_picture_holds_every_token(tmp_path, sampled):
    options = {"method": "sampled", "exact_top": 3, "num_samples": 5} if sampled else {}
    data = residual_energies(make_model(), make_rows(5), **options, **QUIET)
    figure = plot_residual_energies(data, tmp_path / "energies.png")
    assert (tmp_path / "energies.png").is_file()
    energies, normalisers, gains = figure.axes
    assert energies.get_yscale() == "log"
    for ax in (normalisers, gains):
        (polygon,) = ax.patches
        area = abs(_area(polygon.get_xy()))
        assert area == pytest.approx(1.0, abs=1e-6)  # a density: no token is left out
        assert "nats" in ax.get_xlabel()
    text = normalisers.get_legend().get_texts()[0].get_text()
    assert ("mean in [" in text) == sampled
    assert ("middle of its bounds" in normalisers.get_xlabel()) == sampled


def _area(points):
    x, y = points[:, 0], points[:, 1]
    return 0.5 * float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() + x[-1] * y[0] - x[0] * y[-1])


def test_refusals():
    model, rows = make_model(), single_rows(5)
    with pytest.raises(TypeError, match="MonArcForCausalLM"):
        residual_energies(torch.nn.Linear(1, 1), rows)
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        residual_energies(model, rows, max_tokens=0)
    with pytest.raises(ValueError, match="certified bounds come without samples"):
        residual_energies(model, rows, method="certified")
    for most in (5, None):
        with pytest.raises(ValueError, match="no token that counts"):
            residual_energies(model, single_rows(1), max_tokens=most, **QUIET)
