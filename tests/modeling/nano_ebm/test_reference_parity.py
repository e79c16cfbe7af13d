"""The same numbers as the original implementation, recorded in tests/fixtures/nano_ebm (provenance: its README)."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.testing import assert_close

from hf_elm.modeling.nano_ebm import NanoEBMForRefinement
from hf_elm.modeling.nano_ebm.convert_nano_ebm import convert_reference_checkpoint
from hf_elm.modeling.nano_ebm.free_energy import Objective, linear_field
from hf_elm.modeling.nano_ebm.refinement import StepRule, centre, refine


FIXTURE = Path(__file__).parents[2] / "fixtures" / "nano_ebm"


@pytest.fixture(scope="module")
def recorded():
    return load_file(FIXTURE / "tensors.safetensors")


@pytest.fixture(scope="module")
def scalars():
    return json.loads((FIXTURE / "expected.json").read_text())["scalars"]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "out"
    convert_reference_checkpoint(FIXTURE, out)
    return NanoEBMForRefinement.from_pretrained(out).eval()


@pytest.fixture
def model(converted):
    """The converted model; what a test changes in its configuration is undone."""
    saved = dict(vars(converted.config))
    yield converted
    vars(converted.config).clear()
    vars(converted.config).update(saved)
    converted.zero_grad(set_to_none=True)


def close(found, expected):
    """1e-5 relative to the size of the tensor."""
    assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def labels_of(recorded, name="targets"):
    """(input_ids, labels) of our convention: the recorded targets are shifted already, -1 is ignored."""
    targets = recorded[name]
    ids = torch.cat([recorded["idx"], targets[:, -1:].clamp(min=0)], 1)
    labels = torch.cat([torch.full_like(targets[:, :1], -100), targets.masked_fill(targets == -1, -100)], 1)
    return ids, labels


def test_states_and_system_one(model, recorded):
    with torch.no_grad():
        out = model(recorded["idx"], output_hidden_states=True, use_thinking=False)
    close(out.hidden_states[-1], recorded["hidden"])
    close(out.logits, recorded["s1_logits"])


@pytest.mark.parametrize("form", ["hard", "soft"])
@pytest.mark.parametrize("alpha", ["0.02", "5", "2000"])
def test_every_trajectory(model, recorded, alpha, form):
    model.config.use_soft_tokens = "published" if form == "soft" else False
    expected = recorded[f"traj_a{alpha}_{form}"]
    with torch.no_grad():
        found = model(recorded["idx"], think_lr=float(alpha), output_trajectory=True).trajectory
        if (alpha, form) != ("2000", "soft"):
            return close(found, expected)
        # steps of 2000 through the trunk amplify float32 rounding, here and there, to about 1e-5: compared in float64
        assert_close(found, expected, rtol=0, atol=3e-5 * expected.abs().max().item())
        exact = copy.deepcopy(model).double()(recorded["idx"], think_lr=2000.0, output_trajectory=True).trajectory
    close(exact.float(), expected)


def test_the_published_step_depends_on_the_batch_and_ours_does_not(model, recorded):
    with torch.no_grad():
        alone = model(recorded["idx"][:1], think_lr=2000.0, output_trajectory=True).trajectory
    close(alone, recorded["traj_a2000_hard_row0_alone"])
    assert (alone - recorded["traj_a2000_hard"][:, :1]).abs().max() > 1
    model.config.grad_reduction = "none"
    with torch.no_grad():
        batch, alone = (model(recorded["idx"][:rows], think_lr=5.0).logits for rows in (3, 1))
    assert_close(alone, batch[:1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("alpha", ["0.02", "2000"])
def test_losses(model, recorded, scalars, alpha):
    """Position 20 is our extra token: its state, as an input, is no target's."""
    ids, labels = labels_of(recorded)
    expected = scalars[f"forward_a{alpha}_refine1"]
    with torch.no_grad():
        # the published step divides by the number of predicted positions, 3 * 20; this row has 21 tokens
        out = model(ids, labels=labels, think_lr=float(alpha) * 21 / 20)
    found = {"loss": out.loss, "nll_s1": out.nll_s1, "nll_s2": out.nll_s2}
    for name, value in found.items():
        assert value.item() == pytest.approx(expected[name], rel=1e-5), name
    with torch.no_grad():
        plain = model(ids, labels=labels, use_thinking=False)
    assert plain.loss.item() == pytest.approx(scalars[f"forward_a{alpha}_refine0"]["loss"], rel=1e-5)


@pytest.mark.parametrize("alpha", ["0.02", "2000"])
def test_energies(model, recorded, scalars, alpha):
    """The recorded initial and final energies are means of <p, E> with the energies of the true context."""
    with torch.no_grad():
        energies = model(recorded["idx"], think_lr=float(alpha)).energies.mean((1, 2))
    expected = scalars[f"forward_a{alpha}_refine1"]
    assert energies[0].item() == pytest.approx(expected["initial_energy"], rel=1e-5)
    assert energies[-1].item() == pytest.approx(expected["final_energy"], rel=1e-5)


def test_gradients_of_system_one(model, recorded):
    ids, labels = labels_of(recorded)
    model(ids, labels=labels, use_thinking=False).loss.backward()
    close(-model.energy_head.weight.grad, recorded["grad_s1_energy_head"])  # theirs maps to energies, ours to logits
    close(model.trunk.token_embedding.weight.grad, recorded["grad_s1_wte"])


# ------------------------------------------------------------------------------------------------ contrastive terms


def published_cd(model, targets, steps, step_size):
    """The published definition: states of the *targets*, energy of y_t at a state that has seen y_t, no gradient for it."""
    states = model(targets, output_hidden_states=True, use_thinking=False).hidden_states[-1]
    field = linear_field(states, model.energy_head)
    energies = -field.start()
    rule = StepRule(torch.tensor([step_size]), steps, mirror=False)
    with torch.no_grad():
        z = refine(field, field.start(), Objective(entropy_weight=0.0), rule).logits[-1]
    positive = energies.gather(-1, targets.unsqueeze(-1)).sum() / targets.numel()
    negative = (z.softmax(-1) * energies).sum() / targets.numel()
    return positive, negative, z


@pytest.mark.parametrize("step_size", ["0.01", "1"])
@pytest.mark.parametrize("steps", [1, 5])
def test_the_published_contrastive_divergence_is_reproduced(model, recorded, scalars, steps, step_size):
    positive, negative, z = published_cd(model, recorded["targets_valid"], steps, float(step_size))
    expected = scalars[f"cd_k{steps}_ss{step_size}"]
    assert (positive - negative).item() == pytest.approx(expected["loss"], rel=1e-5)
    if (steps, step_size) == (5, "1"):
        close(z, centre(recorded["neg_cd_k5_ss1"]))  # theirs are not centred
    # the published loss holds the data's energy constant: its gradient is that of the negatives alone, which pushes all
    # energies up; with both phases the constant direction cancels
    both = torch.autograd.grad(positive - negative, model.energy_head.weight, retain_graph=True)[0]
    negatives_alone = torch.autograd.grad(-negative, model.energy_head.weight)[0]
    assert negatives_alone.norm().item() == pytest.approx(expected["grad_norm_energy_head"], rel=1e-4)
    assert negatives_alone.sum(0).norm() > 1e-2
    assert both.sum(0).norm() < 1e-5


def test_our_contrastive_term_has_not_seen_its_target_and_carries_both_gradients(model, recorded):
    config = model.config
    config.use_contrastive, config.contrastive_type, config.contrastive_k = True, "cd", 3
    config.langevin_step_size, config.langevin_noise_scale, config.contrastive_weight = 1.0, 0.0, 1.0
    ids, labels = labels_of(recorded, "targets_valid")
    out = model(ids, labels=labels, use_thinking=False)
    gradient = torch.autograd.grad(out.contrastive_loss, model.energy_head.weight)[0]
    assert gradient.sum(0).norm() < 1e-5  # energies cannot drift: the loss knows differences only
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % 65  # the last target
    states, changed = (
        model(x, output_hidden_states=True, use_thinking=False).hidden_states[-1][:, :-1] for x in (ids, other)
    )
    assert torch.equal(states, changed)


def test_the_published_stop_rule(model, recorded):
    """All positions stop after the mean energy has changed by less than the tolerance twice in a row."""
    trajectory = recorded["traj_a5_hard"]
    energies = -recorded["s1_logits"]
    means = (F.softmax(trajectory, -1) * energies).sum(-1).mean((1, 2))
    changes = (means[1:] - means[:-1]).abs()
    tolerance = changes[:2].max().item() * 1.01
    with torch.no_grad():
        out = model(recorded["idx"], think_lr=5.0, think_tolerance=tolerance, output_trajectory=True)
    close(out.trajectory[:3], trajectory[:3])
    assert torch.equal(out.trajectory[3], out.trajectory[2])
    assert torch.equal(out.trajectory[4], out.trajectory[2])
