"""The published contrastive losses, written out from their description, against recorded values; what is wrong in them, and ours.

The recorded calls follow ``torch.manual_seed(123)`` (provenance: README of tests/fixtures/nano_ebm). Published, with the states of
the *targets* y (position t has seen y_t), E = -W h, and p~ from k steps  z <- z - eta p (E - <p, E>):

    L = mean_t E_t[y_t] - mean_t <p~_t, E_t>,  the first term held constant
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from hf_elm.modeling.nano_ebm import NanoEBMForRefinement
from hf_elm.modeling.nano_ebm.contrastive import LangevinChain, NegativeChains, sample_negatives
from hf_elm.modeling.nano_ebm.convert_nano_ebm import convert_reference_checkpoint
from hf_elm.modeling.nano_ebm.free_energy import Objective, linear_field
from hf_elm.modeling.nano_ebm.refinement import StepRule, centre


FIXTURE = Path(__file__).parents[2] / "fixtures" / "nano_ebm"
KINDS = ("cd", "pcd", "fast_pcd")
N_PERSISTENT, N_CHAINS = 6, 5


class Published:
    """The recorded model's energies at the targets, and the published negatives."""

    def __init__(self, model, recorded):
        self.targets = recorded["targets_valid"]
        with torch.no_grad():
            out = model(self.targets, output_hidden_states=True, use_thinking=False)
        self.states, self.weight = out.hidden_states[-1], model.energy_head.weight.detach().requires_grad_()
        self.energies = -(self.states @ self.weight.detach().T)  # (row, position, vocab)

    def chain(self, start, energies, steps, step_size):
        z = start
        for _ in range(steps):
            probs = z.softmax(-1)
            z = z - step_size * probs * (energies - (probs * energies).sum(-1, keepdim=True))
        return z

    def negatives(self, kind, steps, step_size):
        """(negatives, the row whose energy moved each of them), after the recorded seed."""
        energies, rows = self.energies, len(self.energies)
        if kind == "cd":
            return self.chain(-energies, energies, steps, step_size), list(range(rows))
        torch.manual_seed(123)
        if kind == "pcd":  # particles of the batch's length, drawn with replacement
            particles = torch.randn(N_PERSISTENT, *energies.shape[1:])
            drawn = torch.randint(0, N_PERSISTENT, (rows,))
            return self.chain(particles[drawn], energies, steps, step_size), list(range(rows))
        chains = torch.randn(N_CHAINS, *energies.shape[1:])
        moved_by = torch.randint(0, rows, (N_CHAINS,))
        torch.rand(N_CHAINS)  # restarts, of probability 0
        chains = self.chain(chains, energies[moved_by], steps, step_size)
        drawn = torch.randint(0, N_CHAINS, (rows,))
        return chains[drawn], moved_by[drawn].tolist()

    def phases(self, negatives):
        """(mean energy of the targets, of the negatives), with gradient in the energy head."""
        energies = -(self.states @ self.weight.T)
        positive = energies.gather(-1, self.targets.unsqueeze(-1)).sum() / self.targets.numel()
        return positive, (negatives.softmax(-1) * energies).sum() / self.targets.numel()


@pytest.fixture(scope="module")
def recorded():
    return load_file(FIXTURE / "tensors.safetensors")


@pytest.fixture(scope="module")
def published(tmp_path_factory, recorded):
    out = tmp_path_factory.mktemp("converted") / "out"
    convert_reference_checkpoint(FIXTURE, out)
    return Published(NanoEBMForRefinement.from_pretrained(out).eval(), recorded)


@pytest.mark.parametrize("step_size", ["0.01", "1"])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_recorded_losses_and_gradients(published, kind, steps, step_size):
    """Float32 sums of 3900 terms: 1e-5. The recorded gradient is that of the negatives alone."""
    expected = json.loads((FIXTURE / "expected.json").read_text())["scalars"][f"{kind}_k{steps}_ss{step_size}"]
    positive, negative = published.phases(published.negatives(kind, steps, float(step_size))[0])
    assert (positive - negative).item() == pytest.approx(expected["loss"], rel=1e-5)
    gradient = torch.autograd.grad(-negative, published.weight, retain_graph=True)[0]
    assert gradient.norm().item() == pytest.approx(expected["grad_norm_energy_head"], rel=1e-5)
    both = torch.autograd.grad(positive - negative, published.weight)[0]
    assert abs(both.norm().item() / expected["grad_norm_energy_head"] - 1) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_negatives(published, recorded, kind):
    expected = recorded[f"neg_{kind}_k5_ss1"]
    found, _ = published.negatives(kind, 5, 1.0)
    assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_recorded_particles_are_noise_of_the_batchs_length(recorded):
    """They know no context, and a batch of another length has none."""
    torch.manual_seed(123)
    assert torch.equal(torch.randn(N_PERSISTENT, 20, 65), recorded["pcd_init_particles"])


@pytest.mark.parametrize("kind", KINDS)
def test_without_gradient_in_the_data_energies_climb_and_with_both_they_cannot(published, kind):
    """A constant added to all energies of a position: the published loss rewards it, the difference of two energies does not."""
    positive, negative = published.phases(published.negatives(kind, 5, 1.0)[0])
    climbs = torch.autograd.grad(-negative, published.weight, retain_graph=True)[0].sum(0)
    stays = torch.autograd.grad(positive - negative, published.weight)[0].sum(0)
    assert climbs.norm() > 1e-2
    assert stays.norm() < 1e-5


def test_published_particles_are_shared_and_ours_are_not(published, recorded):
    """Rows 0 and 1 of the recorded batch draw the same particle: the second result overwrites the first."""
    energies = published.energies
    origins = []
    for row, negative in enumerate(recorded["neg_pcd_k5_ss1"]):
        ends = published.chain(recorded["pcd_init_particles"], energies[row], 5, 1.0)
        origins.append((ends - negative).abs().amax((1, 2)).argmin().item())
    assert origins == [5, 5, 3]
    chains, counted = NegativeChains(N_PERSISTENT, 65, 0.0, 0.0), torch.ones(60, dtype=torch.bool)
    drawn, places = chains.draw(counted, torch.Generator().manual_seed(123))
    assert len(drawn.unique()) == len(places.unique()) == N_PERSISTENT


def test_published_fast_chains_are_scored_by_another_rows_energy_and_ours_by_their_own(published):
    """Row 0 is given a chain that row 1's energy moved; ours move by the energy of the position that they are compared at."""
    _, moved_by = published.negatives("fast_pcd", 5, 1.0)
    assert moved_by != list(range(len(moved_by)))
    readout = torch.nn.Linear(32, 65, bias=False)
    readout.weight = torch.nn.Parameter(published.weight.detach())
    field = linear_field(published.states, readout)
    objective, counted = Objective(entropy_weight=0.0), torch.ones(published.states.shape[:2], dtype=torch.bool)
    chains = NegativeChains(counted.numel(), 65, 0.0, 0.0)
    with torch.no_grad():
        chains.displacement.normal_(generator=torch.Generator().manual_seed(0))
        before = chains.displacement.clone()
        chain = LangevinChain(
            StepRule(torch.tensor([1.0]), 5, mirror=False, generator=torch.Generator().manual_seed(1))
        )
        found, valid = sample_negatives(field, field.start(), objective, chain, counted, chains)
        assert valid.all()
        drawn, places = chains.draw(counted.flatten(), torch.Generator().manual_seed(1))
        start = centre(field.start()).flatten(0, 1)
        start[places] += before[drawn]
        expected = published.chain(start.view_as(found), published.energies, 5, 1.0)
    assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
