"""A refinement at hand: its path, its energies, its parts and its gradient, against the model and autograd."""

import pytest
import torch
from torch.testing import assert_close

from hf_elm.plots.prompt_refinement import refine_prompt, token_labels
from hf_elm.plots.refinement_trajectory import (
    energy_parts,
    likeliest_tokens,
    natural_gradient_norms,
    refinement_trajectory,
)
from hf_elm.plots.token_energies import token_energies
from tests.hf_elm.plots.tiny_plots import CONFIGS, PROMPT, byte_tokenizer, tiny_model


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("topk", [None, 7])
def test_energy_of_the_path_is_what_the_model_reports(name, topk):
    """1e-10: float64, sums in another order."""
    model = tiny_model(**CONFIGS[name])
    refinement = refine_prompt(model, byte_tokenizer(), PROMPT, think_steps=3, think_topk=topk)
    ids = byte_tokenizer()(PROMPT, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        out = model(
            ids, think_steps=3, think_topk=topk, output_energies=True, output_trajectory=True, logits_to_keep=1
        )
    assert_close(refinement.energies, out.energies[:, 0, 0])
    assert_close(refinement.energy(refinement.logits), out.energies[:, 0, 0], atol=1e-10, rtol=1e-10)
    expected = out.trajectory[:, 0, 0].log_softmax(-1)
    if topk:
        expected[0] = out.trajectory[0, 0, 0].log_softmax(-1)
        assert (refinement.log_probs().isfinite().sum(-1) == topk).all()
    assert_close(refinement.log_probs()[1:], expected[1:], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", CONFIGS)
def test_parts_add_up_to_the_energy(name):
    refinement = refine_prompt(tiny_model(**CONFIGS[name]), byte_tokenizer(), PROMPT, think_steps=2)
    parts = energy_parts(refinement)
    assert_close(sum(parts.values()), refinement.energies, atol=1e-10, rtol=1e-10)
    field = refinement.field
    assert ("units" in parts, "memory" in parts) == (field.unit_drive is not None, field.query is not None)
    embedding = refinement.log_probs().exp() @ field.readout
    assert_close(parts["linear"], -(embedding @ field.hidden[0, 0]), atol=1e-10, rtol=1e-10)


def test_gradient_norm_is_that_of_autograd():
    """|grad|_p = sqrt(sum_v p_v (D_v - <p, D>)^2) with D from autograd through p itself."""
    refinement = refine_prompt(tiny_model(softmax_temperature=1.3), byte_tokenizer(), PROMPT, think_steps=2)
    field, objective = refinement.field, refinement.objective
    expected = []
    for logits in refinement.logits:
        probs = (logits / 1.3).softmax(-1).requires_grad_()
        energy = (
            field.potential(field.embed(probs[None, None])).sum()
            + objective.entropy_weight * (probs * probs.log()).sum()
        )
        (slope,) = torch.autograd.grad(energy, probs)
        expected.append((probs * (slope - (probs * slope).sum()).square()).sum().sqrt().detach())
    assert_close(natural_gradient_norms(refinement), torch.stack(expected), atol=1e-9, rtol=1e-7)


def test_trajectory_descends_and_its_cut_passes_through_both_ends():
    data = refinement_trajectory(
        tiny_model(), byte_tokenizer(), PROMPT, think_steps=3, think_lr=0.5, num_tokens=4, points=121
    )
    assert (data.energies.diff() < 0).all()
    assert (data.gradient_norms.diff() < 0).all()
    assert data.probs.shape == (4, 4)
    assert len(data.labels) == 4
    at_start, at_end = data.cut[0], data.cut[80]  # t = 0 and 1
    assert_close(torch.stack([at_start, at_end]), data.energies[[0, -1]], atol=1e-10, rtol=1e-10)
    assert_close(data.step_shares[[0, -1]], torch.tensor([0.0, 1.0], dtype=torch.float64))


def test_likeliest_tokens_are_of_the_whole_path_and_ordered_by_its_end():
    probs = torch.tensor([[0.7, 0.1, 0.2, 0.0], [0.1, 0.5, 0.4, 0.0]])
    assert likeliest_tokens(probs, 2).tolist() == [1, 0]
    assert likeliest_tokens(probs, 9).tolist() == [1, 2, 0]  # no token without any probability
    with pytest.raises(ValueError, match="num_tokens"):
        likeliest_tokens(probs, 0)


def test_token_energies_are_centred_logits():
    model = tiny_model()
    data = token_energies(model, byte_tokenizer(), PROMPT, num_tokens=5, think_steps=2)
    ids = byte_tokenizer()(PROMPT, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        out = model(ids, think_steps=2)
    for values, probs, logits in (
        (data.before, data.probs_before, out.s1_logits),
        (data.after, data.probs_after, out.logits),
    ):
        centred, expected = logits[0, -1] - logits[0, -1].mean(), logits[0, -1].softmax(-1)
        for value, prob in zip(values, probs, strict=True):
            index = (centred - value).abs().argmin()
            assert_close(centred[index], value)
            assert_close(expected[index], prob)


def test_labels_show_what_cannot_be_seen():
    tokenizer = byte_tokenizer()
    ids = tokenizer("\n é", add_special_tokens=False)["input_ids"]
    labels = token_labels(tokenizer, ids)
    assert labels[:2] == ["'\\n'", "' '"]
    assert all("\ufffd" not in label and label for label in labels)  # half a character has its token's name


def test_a_training_model_stays_one_and_dropout_is_off():
    model = tiny_model(dropout=0.5).train()
    energies = [refine_prompt(model, byte_tokenizer(), PROMPT).energies for _ in range(2)]
    assert model.training
    assert torch.equal(*energies)


def test_refusals():
    model, tokenizer = tiny_model(), byte_tokenizer()
    with pytest.raises(ValueError, match="prompt='' has no token"):
        refine_prompt(model, tokenizer, "")
    with pytest.raises(ValueError, match="prompt has 60 tokens; the model has 48 positions"):
        refine_prompt(model, tokenizer, "x" * 60)
    with pytest.raises(ValueError, match="think_steps=0"):
        refine_prompt(model, tokenizer, "x", think_steps=0)
    with pytest.raises(ValueError, match="think_lr"):
        refine_prompt(model, tokenizer, "x", think_lr=2.0)
    with pytest.raises(TypeError, match="NanoEBMForRefinement"):
        refine_prompt(torch.nn.Linear(1, 1), tokenizer, "x")
