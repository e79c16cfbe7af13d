"""The head is the likeliest tokens, the samples follow the LM restricted to the rest."""

import torch

from hf_elm.candidate_strata import candidate_strata


def test_strata_sample_the_tail_only_and_in_proportion():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0, -torch.inf], [0.0] * 5]).double()
    strata = candidate_strata(logits, 2, 20_000, torch.Generator().manual_seed(0))
    assert strata.token_ids[:2, 1].tolist() == [1, 3]
    probs = torch.softmax(logits[0], -1)
    torch.testing.assert_close(strata.head_log_probs[:, 1].exp(), probs[[1, 3]])
    torch.testing.assert_close(strata.log_tail_mass[1].exp(), probs[[0, 2, 4]].sum())
    frequency = torch.bincount(strata.token_ids[2:, 1], minlength=5) / 20_000
    expected = torch.zeros(5).double().index_put((torch.tensor([0, 2]),), probs[[0, 2]] / probs[[0, 2]].sum())
    error = (expected * (1 - expected) / 20_000).sqrt()
    assert ((frequency - expected).abs() <= 4 * error).all()  # 4 standard errors; exactly 0 where the law says so


def test_strata_of_a_certain_token_have_an_empty_tail():
    logits = torch.full((2, 4), -torch.inf).index_fill(1, torch.tensor([2]), 0.0)
    strata = candidate_strata(logits, 1, 3, torch.Generator().manual_seed(0))
    assert strata.log_tail_mass[1] == -torch.inf
    assert strata.token_ids.shape == (4, 2)
    assert (strata.token_ids < 4).all()
