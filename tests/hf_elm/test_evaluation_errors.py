"""What cannot be evaluated is refused with the argument, the value, the rule and the remedy."""

import pytest
import torch

from hf_elm.evaluation import evaluate_elm
from tests.hf_elm.tiny_evaluation import VOCAB, LetterTokenizer, make_model, make_rows


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def rows():
    return make_rows()


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ([], ValueError, "no rows"),
        ([{"input_ids": []}], ValueError, "row 0 is empty"),
        ([{"input_ids": [3]}], ValueError, "no counted tokens"),
        ([{"input_ids": [3, 4, 5], "labels": [-100] * 3}], ValueError, "no counted tokens"),
        ([{"text": "hello"}], ValueError, r"input_ids, row 0 has \['text'\].*pack_rows"),
        (["hello"], TypeError, "dicts with input_ids, got str"),
        ([{"input_ids": [[1, 2]]}], TypeError, "input_ids of row 0 must be one flat sequence of integers"),
        ([{"input_ids": [0.5, 1.0]}], TypeError, "flat sequence of integers"),
        ([{"input_ids": [1, 2, 3], "labels": [1, 2]}], ValueError, "labels of row 0 has 2 entries for 3"),
        ([{"input_ids": [1, 2]}, {"input_ids": [1] * 33}], ValueError, "row 1 has 33 tokens, but the model has 32"),
        ([{"input_ids": [1, VOCAB]}], ValueError, f"token id {VOCAB}, outside the model's vocabulary of {VOCAB}"),
        ([{"input_ids": [1, -1]}], ValueError, "token id -1"),
        ([{"input_ids": [1, 2, 3], "labels": [2, 3, -100]}], ValueError, "labels of row 0 differ.*unshifted"),
        (
            [{"input_ids": [1, 2], "labels": [1, 2]}, {"input_ids": [1, 2]}],
            ValueError,
            "labels is in some of rows 0 to 1",
        ),
    ],
)
def test_bad_data_is_refused_by_name_and_rule(model, data, error, words):
    with pytest.raises(error, match=words):
        evaluate_elm(model, data, progress=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "best"}, "method must be one of"),
        ({"method": "sampled", "num_samples": 1, "exact_top": 2}, 'num_samples must be at least 2.*"certified"'),
        ({"method": "certified", "exact_top": 2}, "energy_bound, which is None"),
        ({"method": "exact", "exact_vocab_limit": 8}, 'all 12 tokens.*method="sampled".*exact_vocab_limit=12'),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"exact_top": -1}, "exact_top must not be negative"),
        ({"position_fraction": 0.0}, r"position_fraction must be in \(0, 1\], got 0.0"),
        ({"bytes_per_token": [1, 2]}, "one number for each of 12 token ids"),
        ({"bytes_per_token": [1] * VOCAB, "tokenizer": LetterTokenizer()}, "not both"),
    ],
)
def test_bad_options_are_refused_by_name_and_remedy(model, rows, options, words):
    with pytest.raises(ValueError, match=words):
        evaluate_elm(model, rows, progress=False, **options)


def test_a_model_without_energies_is_refused(model, rows):
    with pytest.raises(TypeError, match=r"with energies, got StableLmForCausalLM.*from_causal_lm"):
        evaluate_elm(model.lm, rows)


def test_an_equal_compute_lm_over_another_vocabulary_is_refused(model, rows):
    with pytest.raises(ValueError, match=r"equal_compute_lm \(StableLmForCausalLM\) has a vocabulary of 5"):
        evaluate_elm(model, rows, equal_compute_lm=make_model(vocab_size=5).lm, progress=False)


def test_an_equal_compute_model_that_counts_fewer_tokens_is_refused():
    free = [{name: row[name] for name in ("input_ids", "segment_ids")} for row in make_rows()]
    with pytest.raises(ValueError, match=r"leaves out first tokens.*mask_segment_starts"):
        evaluate_elm(make_model(mask_segment_starts=False), free, equal_compute_lm=make_model(), progress=False)


def test_a_diverged_model_is_refused(rows):
    diverged = make_model()
    with torch.no_grad():
        diverged.energy_parameters()[0].fill_(float("nan"))
    with pytest.raises(ValueError, match="mean_energy is not finite somewhere in rows 0 to 3"):
        evaluate_elm(diverged, rows, progress=False)
