"""The `evaluate` module: loaded by path without a network, its numbers those of `hf_elm.evaluation`."""

import math

import pytest
import torch


evaluate = pytest.importorskip("evaluate")

from hf_elm.evaluation import evaluate_elm  # noqa: E402
from hf_elm.metrics import ELM_PERPLEXITY  # noqa: E402
from hf_elm.refinement_evaluation import evaluate_refinement  # noqa: E402
from tests.hf_elm import tiny_harness as tiny  # noqa: E402


TEXTS = ["The cat sat.", "one, two, three", "x" * 100]


@pytest.fixture(scope="module")
def metric():
    return evaluate.load(ELM_PERPLEXITY)


def rows(tokenizer):
    return [{"input_ids": tokenizer(text)["input_ids"][: tiny.POSITIONS]} for text in TEXTS]


def test_monarc_exact_and_as_an_interval(metric, tmp_path):
    tokenizer = tiny.letters()
    model = tiny.monarc(tokenizer, dtype=torch.float32)
    folder = tiny.saved(model, tokenizer, tmp_path / "monarc")
    found = metric.compute(predictions=TEXTS, model_id=folder)
    expected = evaluate_elm(model, rows(tokenizer), tokenizer=tokenizer, progress=False)
    assert found["perplexity"] == pytest.approx(math.exp(expected.elm_nll), rel=1e-6)
    assert found["lm_perplexity"] == pytest.approx(math.exp(expected.lm_nll), rel=1e-6)
    assert found["perplexity_lower"] == found["perplexity_upper"] == found["perplexity"]
    assert found["likelihood"]["num_tokens"] == expected.num_tokens
    sampled = metric.compute(predictions=TEXTS, model_id=folder, method="sampled", exact_top=8, num_samples=4)
    assert sampled["perplexity"] is None
    assert sampled["perplexity_lower"] < sampled["perplexity_upper"]


def test_nano_ebm_before_and_after_thinking(metric, tmp_path):
    tokenizer = tiny.letters()
    model = tiny.nano_ebm(tokenizer, dtype=torch.float32)
    found = metric.compute(predictions=TEXTS, model_id=tiny.saved(model, tokenizer, tmp_path / "nano"))
    expected = evaluate_refinement(model, rows(tokenizer), tokenizer=tokenizer).estimates
    assert found["perplexity"] == pytest.approx(math.exp(expected["s2_nll"].value), rel=1e-6)
    assert found["lm_perplexity"] == pytest.approx(math.exp(expected["s1_nll"].value), rel=1e-6)


def test_a_text_of_one_token_is_refused(metric, tmp_path):
    tokenizer = tiny.letters()
    folder = tiny.saved(tiny.monarc(tokenizer, dtype=torch.float32), tokenizer, tmp_path / "monarc")
    with pytest.raises(ValueError, match="text 1 has 1 tokens"):
        metric.compute(predictions=["ab", "a"], model_id=folder)
