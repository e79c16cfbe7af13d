"""Two-level sampling at the edges of its blocks (the law itself: test_lm_head_loss.py)."""

import pytest
import torch

from hf_elm.modeling.monarc.candidate_sampling import sample_two_level


@pytest.mark.parametrize("vocab", [1, 255, 256, 257, 600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_single_positive_weight_is_always_found(vocab, dtype):
    for index in {0, vocab // 2, vocab - 1}:
        weights = torch.zeros(3, vocab, dtype=dtype)
        weights[:, index] = 1e-20
        drawn = sample_two_level(weights, 50)
        assert drawn.dtype == torch.int64
        assert (drawn == index).all()


def test_extreme_uniform_numbers_select_the_first_and_the_last_positive_weight(monkeypatch):
    """0 and the largest float below 1: the ends of the inverse CDF, where rounding would select a weight of zero."""
    weights = torch.zeros(2, 700)
    weights[:, 3], weights[:, 300], weights[:, 690] = 1e-3, 1.0, 1e-3
    for uniform, index in ((0.0, 3), (1 - 2**-24, 690)):
        monkeypatch.setattr(
            torch, "rand", lambda *shape, uniform=uniform, dtype=None, **_: torch.full(shape, uniform, dtype=dtype)
        )
        assert (sample_two_level(weights, 4) == index).all()


@pytest.mark.parametrize("block_size", [1, 2, 7, 64])
def test_every_block_size_follows_the_same_law(block_size):
    weights = torch.tensor([[1.0, 0.0, 3.0, 0.0, 0.0, 4.0, 2.0]], dtype=torch.float64)
    drawn = sample_two_level(weights, 20_000, torch.Generator().manual_seed(0), block_size)
    share = torch.bincount(drawn[0], minlength=7) / 20_000
    assert (share[weights[0] == 0] == 0).all()
    assert (share - weights[0] / 10).abs().max() <= 4 * (0.25 / 20_000) ** 0.5  # 4 standard errors


@pytest.mark.parametrize(("rows", "samples"), [(0, 3), (2, 0)])
def test_empty_requests_give_empty_answers(rows, samples):
    assert sample_two_level(torch.ones(rows, 300), samples).shape == (rows, samples)
