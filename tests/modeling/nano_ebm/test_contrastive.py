"""Contrastive terms: equal to the cross-entropy where they must be, chains that fit every batch, gradients in both phases."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from hf_elm.modeling.nano_ebm import NanoEBMForRefinement
from hf_elm.modeling.nano_ebm.contrastive import (
    LangevinChain,
    NegativeChains,
    contrastive_divergence,
    in_batch_info_nce,
    sample_negatives,
)
from hf_elm.modeling.nano_ebm.free_energy import Objective
from hf_elm.modeling.nano_ebm.refinement import StepRule, centre, refine
from tests.modeling.nano_ebm.tiny_nano_ebm import VOCAB, random_field, tiny_nano_ebm, tokens


TYPES = ("cd", "pcd", "fast_pcd")


def contrastive_model(kind="cd", **fields):
    return tiny_nano_ebm(use_contrastive=True, contrastive_type=kind, **fields)


def rule(steps=3, alpha=0.5, noise=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return StepRule(torch.tensor([alpha], dtype=torch.float64), steps, noise=noise, generator=generator)


@pytest.mark.parametrize("bias", [False, True])
def test_with_a_linear_energy_it_is_the_cross_entropy(bias):
    """F(p~) = -log sum exp(z_0) at p~ = softmax(z_0): value and gradient."""
    field, _ = random_field(linear=True, bias=bias)
    field.hidden.requires_grad_()
    targets = tokens(2, 7, high=33, low=0)
    ours = contrastive_divergence(field, Objective(), targets, field.start().detach())
    expected = F.cross_entropy(field.start().transpose(1, 2), targets, reduction="none")
    assert_close(ours, expected, atol=1e-12, rtol=0)
    gradients = [torch.autograd.grad(loss.sum(), field.hidden)[0] for loss in (ours, expected)]
    assert_close(*gradients, atol=1e-12, rtol=0)


def test_it_is_a_difference_of_free_energies_and_both_carry_gradient():
    field, logits = random_field(0.4)
    for value in (field.hidden, field.slots, field.unit_drive):
        value.requires_grad_()
    targets = tokens(2, 7, high=33, low=0)
    ours = contrastive_divergence(field, Objective(), targets, logits)
    certain = F.one_hot(targets, 33) * 2000.0  # probability 1 up to exp(-2000)
    expected = Objective().energy(field, certain) - Objective().energy(field, logits)
    assert_close(ours, expected, atol=1e-10, rtol=0)
    found = torch.autograd.grad(ours.sum(), (field.hidden, field.slots, field.unit_drive))
    both = torch.autograd.grad(expected.sum(), (field.hidden, field.slots, field.unit_drive))
    assert_close(found, both, atol=1e-10, rtol=0)


def test_chains_of_cd_are_steps_from_the_prediction():
    field, _ = random_field(0.4)
    start, counted = field.start(), torch.ones(2, 7, dtype=torch.bool)
    found, contrasted = sample_negatives(field, start, Objective(), LangevinChain(rule()), counted)
    assert_close(found, refine(field, start, Objective(), rule()).logits[-1], atol=1e-11, rtol=0)
    assert contrasted.all()


def test_stored_chains_go_on_where_they_were():
    """As many chains as positions: two calls of 2 steps are one call of 4, whichever chain meets whichever position."""
    field, _ = random_field(0.4, batch=1, seq=1)  # one position: its chain is known
    start, counted = field.start(), torch.ones(1, 1, dtype=torch.bool)
    chains = NegativeChains(1, 33, 0.0, 0.0).double()
    for _ in range(2):
        found, _ = sample_negatives(field, start, Objective(), LangevinChain(rule(2)), counted, chains)
    assert_close(found, refine(field, start, Objective(), rule(4)).logits[-1], atol=1e-11, rtol=0)
    assert_close(chains.displacement, (found - centre(start))[0], atol=1e-12, rtol=0)


def test_momentum_carries_on_and_restarts_end_it():
    field, _ = random_field(0.4, batch=1, seq=1)
    start, counted = field.start(), torch.ones(1, 1, dtype=torch.bool)
    ends = {}
    for momentum in (0.0, 0.6):
        chains = NegativeChains(1, 33, momentum, 1.0).double()
        chain = LangevinChain(rule(2, alpha=0.1), momentum)
        ends[momentum], _ = sample_negatives(field, start, Objective(), chain, counted, chains)
        again, _ = sample_negatives(field, start, Objective(), chain, counted, chains, restarts=True)
        assert_close(again, ends[momentum], atol=1e-12, rtol=0)  # restarted with certainty
        assert (chains.velocity.abs().max() > 0) == (momentum > 0) or momentum == 0
    first = [end - centre(start) for end in ends.values()]
    assert first[1].norm() > 1.3 * first[0].norm()


@pytest.mark.parametrize(("positions", "stored"), [(14, 5), (14, 50), (14, 14)])
def test_no_two_positions_share_a_chain(positions, stored):
    chains = NegativeChains(stored, 33, 0.0, 0.0)
    counted = torch.arange(2 * positions) % 2 == 0
    drawn, places = chains.draw(counted, torch.Generator().manual_seed(0))
    assert len(drawn) == len(places) == min(positions, stored)
    assert len(drawn.unique()) == len(places.unique()) == len(drawn)
    assert counted[places].all()


@pytest.mark.parametrize("kind", TYPES)
def test_training_takes_batches_of_every_shape_and_every_parameter_learns(kind):
    model = contrastive_model(kind, n_persistent=8, contrastive_k=2, info_nce_weight=0.1).train()
    for shape in ((2, 9), (1, 4), (3, 12)):
        ids = tokens(*shape)
        out = model(ids, labels=ids, generator=torch.Generator().manual_seed(1))
        assert out.contrastive_loss.isfinite()
        assert out.info_nce_loss.isfinite()
        with torch.no_grad():
            model.config.think_steps = 1  # one step: its loss is nll_s2
            out_1 = model(ids, labels=ids)
            model.config.think_steps = 2
        weighted = 0.5 * out_1.nll_s2 + 0.5 * out_1.nll_s1 + 0.05 * out_1.contrastive_loss + 0.1 * out_1.info_nce_loss
        assert_close(out_1.loss, weighted)
    out.contrastive_loss.backward()
    reached = [name for name, p in model.energy.named_parameters() if torch.count_nonzero(p.grad)]
    assert len(reached) == len(list(model.energy.parameters()))
    if kind != "cd":
        assert torch.count_nonzero(model.chains.displacement.abs().amax(1)) == 8


@pytest.mark.parametrize("kind", TYPES)
def test_it_repeats_with_its_generator_and_evaluation_moves_no_chain(kind):
    ids = tokens(2, 9)
    losses = []
    for _ in range(2):
        model = contrastive_model(kind, n_persistent=8).train()
        for seed in range(3):
            out = model(ids, labels=ids, generator=torch.Generator().manual_seed(seed))
        losses.append(out.contrastive_loss.item())
    assert losses[0] == losses[1]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()(ids, labels=ids)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_chains_are_checkpointed_and_may_be_missing(tmp_path):
    model = contrastive_model("fast_pcd", n_persistent=8, dtype=torch.float32).train()
    ids = tokens(2, 9)
    model(ids, labels=ids)
    model.save_pretrained(tmp_path / "with")
    again = NanoEBMForRefinement.from_pretrained(tmp_path / "with")
    assert torch.equal(again.chains.displacement, model.chains.displacement)
    assert torch.equal(again.chains.velocity, model.chains.velocity)
    tiny_nano_ebm(dtype=torch.float32).save_pretrained(tmp_path / "without")
    fresh = NanoEBMForRefinement.from_pretrained(
        tmp_path / "without", use_contrastive=True, contrastive_type="pcd", n_persistent=8
    )
    assert torch.count_nonzero(fresh.chains.displacement) == 0
    assert torch.count_nonzero(fresh.chains.velocity) == 0


def test_info_nce_is_a_cross_entropy_among_the_tokens_of_the_batch():
    logits, targets = random_field()[1], tokens(2, 7, high=33, low=0)
    counted = torch.rand(2, 7, generator=torch.Generator().manual_seed(0)) > 0.3
    found = in_batch_info_nce(logits, targets, counted)
    for row, position in ((0, 1), (1, 5)):
        scores = logits[row, position][targets[counted]]
        expected = scores.logsumexp(0) - logits[row, position, targets[row, position]]
        assert found[row, position].item() == pytest.approx(expected.item(), abs=1e-12)


def test_the_contrastive_loss_alone_trains():
    """20 repeated steps on one batch: the energy of the true tokens falls below that of the model's own samples."""
    model = contrastive_model("pcd", contrastive_k=2, n_persistent=64, dtype=torch.float32, spread=0.02).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = tokens(4, 12, high=VOCAB)
    losses = []
    for step in range(20):
        out = model(ids, labels=ids, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        out.contrastive_loss.backward()
        optimizer.step()
        losses.append(out.contrastive_loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert out.nll_s1.item() < 4.0
