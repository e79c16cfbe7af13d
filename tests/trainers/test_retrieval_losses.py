"""The retrieval losses by hand, against torch's own, and the signs of their gradients."""

import math

import pytest
import torch
from torch.testing import assert_close

from hf_elm.trainers.retrieval_losses import (
    cosine_matrices,
    info_nce_sum,
    orthogonal_projection_sums,
    pair_counts,
)


COSINES = torch.tensor([[0.6, -0.5, 0.9], [0.25, 0.0, -1.0]], dtype=torch.float64)
LABELS = torch.tensor([[1, 0, -100], [0, 1, 0]])


def test_orthogonal_projection_by_hand():
    positive, negative = orthogonal_projection_sums(COSINES, LABELS)
    assert_close(positive.item(), 0.4**2 + 1.0)
    assert_close(negative.item(), 0.5**2 + 0.25**2 + 1.0)
    positive, negative = orthogonal_projection_sums(COSINES, LABELS, absolute=True)
    assert_close(positive.item(), 0.4 + 1.0)
    assert_close(negative.item(), 0.5 + 0.25 + 1.0)
    assert pair_counts(LABELS).tolist() == [2, 3]


@pytest.mark.parametrize("absolute", [False, True])
def test_gradients_pull_positives_together_and_push_negatives_to_right_angles(absolute):
    cosines = COSINES.clone().requires_grad_()
    sum(orthogonal_projection_sums(cosines, LABELS, absolute)).backward()
    assert (cosines.grad[LABELS == 1] < 0).all()
    negative = LABELS == 0
    assert torch.equal(torch.sign(cosines.grad[negative]), torch.sign(COSINES[negative]))
    assert cosines.grad[0, 2] == 0  # no pair


def test_info_nce_is_cross_entropy_over_a_positive_and_the_negatives():
    labels = torch.tensor([[1, 0, 0], [1, 1, 0]])
    cosines = COSINES.clone().requires_grad_()
    loss = info_nce_sum(cosines, labels, scale=5.0)
    rows = [([0.6, -0.5, 0.9], 0), ([0.25, -1.0], 0), ([0.0, -1.0], 0)]  # the other positive is no negative
    expected = sum(
        torch.nn.functional.cross_entropy(5 * torch.tensor([row], dtype=torch.float64), torch.tensor([place]))
        for row, place in rows
    )
    assert_close(loss, expected)
    loss.backward()
    assert (cosines.grad[labels == 1] < 0).all()
    assert (cosines.grad[labels == 0] > 0).all()


def test_cosines_of_cut_embeddings():
    queries, documents = torch.randn(3, 8).double(), torch.randn(5, 8).double()
    whole, short = cosine_matrices(queries, documents, [8, 2])
    for i in range(3):
        for j in range(5):
            assert_close(whole[i, j], torch.cosine_similarity(queries[i], documents[j], dim=0))
            assert_close(short[i, j], torch.cosine_similarity(queries[i, :2], documents[j, :2], dim=0))
    assert torch.equal(cosine_matrices(queries, documents)[0], whole)
    assert cosine_matrices(queries.bfloat16(), documents.bfloat16())[0].dtype == torch.float32


def test_no_pair_of_a_kind_costs_nothing():
    positive, negative = orthogonal_projection_sums(COSINES, torch.full_like(LABELS, -100))
    assert positive == negative == 0
    assert info_nce_sum(COSINES, torch.zeros_like(LABELS), 20.0) == 0
    assert math.isfinite(info_nce_sum(COSINES[:1, :1], LABELS[:1, :1], 20.0))  # without negatives: 0
