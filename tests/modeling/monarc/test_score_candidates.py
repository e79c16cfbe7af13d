"""`score_candidates`: independent of chunking, restricted to chosen positions, consistent with the forward pass."""

import pytest
import torch
from torch.testing import assert_close

from tests.modeling.monarc.tiny_monarc import layout_inputs, tiny_monarc, tokens


SEQ, COUNT = 9, 5


@pytest.mark.parametrize("fields", [{}, {"energy_adapter_rank": 2}, {"energy_head": "linear", "energy_bound": 1.0}])
@pytest.mark.parametrize("layout", ["plain", "left", "packed"])
def test_chunks_and_positions_change_nothing(fields, layout):
    model, ids, candidates = tiny_monarc(**fields), tokens(2, SEQ), tokens(2, COUNT, SEQ, seed=1)
    inputs = layout_inputs(layout, SEQ)
    whole = model.score_candidates(ids, candidates, **inputs)
    chunked = model.score_candidates(ids, candidates, max_rows=2, **inputs)
    positions = torch.tensor([2, 3, 7])
    some = model.score_candidates(ids, candidates, positions=positions, **inputs)
    assert_close(chunked.energies, whole.energies, rtol=0, atol=1e-12)
    elsewhere = [t for t in range(SEQ) if t not in positions]
    assert_close(some.energies[..., positions], whole.energies[..., positions], rtol=0, atol=1e-12)
    assert (some.energies[..., elsewhere] == 0).all()
    assert whole.energies[..., positions].abs().max() > 1e-3
    forward = model(ids, **inputs)
    assert_close(whole.token_energies, forward.energies, rtol=0, atol=1e-12)
    assert_close(whole.token_log_probs, forward.log_probs, rtol=0, atol=1e-12)


def test_a_token_as_its_own_candidate_has_its_own_energy():
    for fields in ({}, {"energy_adapter_rank": 2}):
        model, ids = tiny_monarc(**fields), tokens(2, SEQ)
        scores = model.score_candidates(ids, ids.unsqueeze(1))
        assert_close(scores.energies[:, 0], scores.token_energies, rtol=0, atol=1e-12)
