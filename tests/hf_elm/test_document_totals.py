"""Means by document against textbook sums."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_elm.document_totals import DocumentTotals, ratio_estimate


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 9)), min_size=2, max_size=8))
@settings(max_examples=40, deadline=None)
def test_ratio_estimate_equals_the_textbook_sum(documents):
    sums, counts = (torch.tensor(column, dtype=torch.float64) for column in zip(*documents, strict=True))
    estimate = ratio_estimate(sums, counts)
    total = sum(n for _, n in documents)
    mean = sum(s for s, _ in documents) / total
    variance = len(documents) / (len(documents) - 1) * sum((s - mean * n) ** 2 for s, n in documents) / total**2
    assert estimate.value == pytest.approx(mean, abs=1e-9)
    assert estimate.standard_error == pytest.approx(math.sqrt(variance), abs=1e-9)


def test_ratio_estimate_with_one_token_per_document_is_the_usual_standard_error():
    values = torch.tensor([1.0, 2.0, 4.0, 8.0])
    estimate = ratio_estimate(values, torch.ones(4))
    assert estimate.standard_error == pytest.approx(statistics.stdev(values.tolist()) / 2)


def test_document_totals_merge_documents_met_twice():
    totals = DocumentTotals()
    totals.add(torch.tensor([[0, 0], [0, 1], [0, 0]]), {"x": torch.tensor([1.0, 2.0, 3.0]).double()})
    totals.add(torch.tensor([[0, 1]]), {"x": torch.tensor([10.0]).double()})
    counts, sums = totals.totals()
    assert counts.tolist() == [2, 2]
    assert sums["x"].tolist() == [4.0, 12.0]
