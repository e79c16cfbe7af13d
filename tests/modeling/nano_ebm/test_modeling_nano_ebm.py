"""The whole model: against attention and memory written out, and the invariances that a prediction must have."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import DynamicCache, StaticCache

from hf_elm.modeling.nano_ebm import NanoEBMConfig, NanoEBMForRefinement
from tests.modeling.nano_ebm.tiny_nano_ebm import SIZES, TEXT_CONFIG, VOCAB, tiny_nano_ebm, tokens


SEQ = 11
VARIANTS = {
    "default": {},
    "rope": {"position_type": "rope", "norm_type": "rmsnorm", "use_bias": False},
    "published": {**NanoEBMConfig.preset("published").to_dict(), **SIZES, "grad_reduction": "none", "think_lr": 1.0},
    "mixture": {"mixture_stopgrad": False, "geometry": "logits"},
    "soft tokens": {"use_soft_tokens": True},
    "stop": {"think_tolerance": 1e-2, "think_steps": 6},
    "language model": {"text_config": TEXT_CONFIG},
    "states only": {"energy_context": 0, "energy_power": 1, "energy_feedback": 1.0},
    "units only": {"energy_heads": 0, "tie_word_embeddings": True},
}
VARIANTS["published"] = {
    key: value for key, value in VARIANTS["published"].items() if key in NanoEBMConfig.__init__.__annotations__
}


@pytest.fixture(params=VARIANTS)
def model(request):
    return tiny_nano_ebm(**VARIANTS[request.param])


def trajectory(model, ids, **inputs):
    with torch.no_grad():
        return model(ids, output_trajectory=True, **inputs).trajectory


# ------------------------------------------------------------------------------------------------- shapes and meaning


def test_shapes_and_the_start(model):
    ids = tokens(2, SEQ)
    steps = model.config.think_steps
    with torch.no_grad():
        out = model(ids, output_trajectory=True, output_hidden_states=True)
    assert out.logits.shape == out.s1_logits.shape == (2, SEQ, VOCAB)
    assert out.energies.shape == (steps + 1, 2, SEQ)
    assert out.trajectory.shape == (steps + 1, 2, SEQ, VOCAB)
    assert len(out.hidden_states) == 3
    assert torch.equal(out.trajectory[0], out.s1_logits)
    assert torch.equal(out.trajectory[-1], out.logits)
    assert_close(out.s1_logits, model.readout()(out.hidden_states[-1]), atol=1e-12, rtol=0)
    assert (out.logits - out.s1_logits).abs().max() > 1e-3
    if model.config.descent_guaranteed:
        assert (out.energies[1:] <= out.energies[:-1] + 1e-12).all()


@pytest.mark.parametrize("off", [{"use_thinking": False}, {"think_steps": 0}])
def test_without_thinking_it_is_system_one(model, off):
    ids = tokens(2, SEQ)
    with torch.no_grad():
        out = model(ids, labels=ids, output_energies=True, **off)
    assert torch.equal(out.logits, out.s1_logits)
    assert out.energies.shape == (1, 2, SEQ)
    assert out.nll_s2 is None
    assert torch.equal(out.loss, out.nll_s1)


def test_the_memory_reads_the_state_before_each_token():
    """The field of the model against one built from the states: key j from the state before token j and its row."""
    model, ids = tiny_nano_ebm(), tokens(2, SEQ)
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states[-1]
        field = model.energy_field(ids)
    rows = model.energy_head.weight[ids]
    normed = rows / (rows.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    keys = model.energy.memory_key(hidden)[:, :-1] + model.energy.memory_token(normed)[:, 1:]
    parts = (keys, model.energy.memory_value(rows)[:, 1:])
    expected = torch.cat([part.unflatten(-1, (4, -1)).transpose(1, 2) for part in parts], -1)
    assert_close(field.slots[:, :, 1:], expected, atol=1e-12, rtol=0)
    assert torch.count_nonzero(field.slots[:, :, 0]) == 0
    last = normed.index_fill(1, torch.tensor([0]), 0.0)
    last = torch.cat([nn.functional.pad(last, (0, 0, back, 0))[:, :SEQ] for back in range(3)], -1)
    drive = model.energy.unit_in(hidden) + model.energy.unit_context(last)
    assert_close(field.unit_drive, drive, atol=1e-12, rtol=0)


def test_energies_can_be_asked_for_anywhere():
    model, ids = tiny_nano_ebm(), tokens(2, SEQ)
    with torch.no_grad():
        out = model(ids, output_trajectory=True)
        field, objective = model.energy_field(ids), model.objective()
        for step in range(3):
            assert_close(objective.energy(field, out.trajectory[step]), out.energies[step], atol=1e-11, rtol=0)


# -------------------------------------------------------------------------------------------------------- invariances


def test_no_token_changes_what_comes_before_it(model):
    ids = tokens(2, SEQ)
    changed = ids.clone()
    changed[:, 6] = (changed[:, 6] + 5) % VOCAB
    before, after = trajectory(model, ids), trajectory(model, changed)
    assert torch.equal(before[:, :, :6], after[:, :, :6])
    assert (before[:, :, 6:] - after[:, :, 6:]).abs().amax((0, 1, 3)).min() > 1e-6


def test_a_row_does_not_depend_on_the_others(model):
    """float32, as used: sums may be ordered differently."""
    model = model.float()
    ids = tokens(5, SEQ)
    whole = trajectory(model, ids)
    for rows in ([0], [0, 3], [4, 0, 1]):
        part = trajectory(model, ids[rows])
        assert_close(part[:, rows.index(0)], whole[:, 0], atol=1e-6 * whole.abs().max().item(), rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, side):
    ids = tokens(2, SEQ)
    padded, mask = torch.full((2, SEQ + 3), 1), torch.zeros(2, SEQ + 3, dtype=torch.long)
    place = slice(3, None) if side == "left" else slice(SEQ)
    padded[:, place], mask[:, place] = ids, 1
    mask[0, :], padded[0] = 1, tokens(SEQ + 3, seed=4)  # the other row is longer
    expected, found = trajectory(model, ids), trajectory(model, padded, attention_mask=mask)
    assert_close(found[:, 1, place], expected[:, 1], atol=1e-10, rtol=0)


def test_packed_documents_are_as_if_alone(model):
    ids = tokens(1, SEQ)
    segments = torch.tensor([[0] * 4 + [1] * 5 + [-1] * 2])
    positions = torch.tensor([[*range(4), *range(5), 0, 0]])
    packed = trajectory(model, ids, segment_ids=segments, position_ids=positions)
    for part in (slice(0, 4), slice(4, 9)):
        assert_close(packed[:, :, part], trajectory(model, ids[:, part]), atol=1e-10, rtol=0)


def test_targets_across_documents_and_padding_are_not_counted():
    model, ids = tiny_nano_ebm(), tokens(1, SEQ)
    segments = torch.tensor([[0] * 4 + [1] * 5 + [-1] * 2])
    with torch.no_grad():
        loss = model(ids, labels=ids, segment_ids=segments).nll_s1
        labels = ids.clone()
        labels[:, [0, 4, 9, 10]] = -100
        same = model(ids, labels=labels, segment_ids=segments).nll_s1
    assert torch.equal(loss, same)


# --------------------------------------------------------------------------------------------------------------- cache


def test_cached_equals_uncached(model):
    """A prompt of 5, a chunk of 3, then token by token; only what is new is refined."""
    ids, mask = tokens(2, SEQ), torch.ones(2, SEQ, dtype=torch.long)
    mask[1, :2] = 0
    expected = trajectory(model, ids, attention_mask=mask)
    cache = DynamicCache(config=model.config)
    begin = 0
    with torch.no_grad():
        for end in (5, 8, 9, 10, 11):
            out = model(ids[:, begin:end], attention_mask=mask[:, :end], past_key_values=cache, output_trajectory=True)
            assert out.energies is None
            for row, first in ((0, begin), (1, max(begin, 2))):
                found = out.trajectory[:, row, first - begin :]
                assert_close(found, expected[:, row, first:end], atol=1e-10, rtol=0)
            begin = end


@pytest.mark.parametrize("kept", [1, 3, torch.tensor([2, 7])])
def test_positions_that_are_not_asked_for_are_left_out(model, kept):
    ids = tokens(2, SEQ)
    with torch.no_grad():
        whole, part = model(ids), model(ids, logits_to_keep=kept)
    place = slice(-kept, None) if isinstance(kept, int) else kept
    assert_close(part.logits, whole.logits[:, place], atol=1e-11, rtol=0)
    assert_close(part.energies, whole.energies[:, :, place], atol=1e-11, rtol=0)


def test_a_cache_that_cannot_hold_memories_is_refused():
    model, ids = tiny_nano_ebm(), tokens(1, 4)
    for cache in (StaticCache(config=model.config, max_cache_len=8), DynamicCache(offloading=True)):
        with pytest.raises(ValueError, match="past_key_values must be a DynamicCache"):
            model(ids, past_key_values=cache)


# ------------------------------------------------------------------------------------------------------------- thinking


def test_more_steps_go_on_where_fewer_end():
    model, ids = tiny_nano_ebm(), tokens(2, SEQ)
    six = trajectory(model, ids, think_steps=6)
    assert torch.equal(trajectory(model, ids, think_steps=4), six[:5])
    change = (six[1:].softmax(-1) - six[:-1].softmax(-1)).abs().amax((1, 2, 3))
    assert change[-1] < 0.5 * change[0]


@pytest.mark.parametrize("k", [1, 5, VOCAB, 200])
def test_topk_keeps_the_likeliest_of_system_one(k):
    model, ids = tiny_nano_ebm(), tokens(2, SEQ)
    with torch.no_grad():
        out = model(ids, think_topk=k)
    kept = out.logits > -torch.inf
    assert (kept.sum(-1) == min(k, VOCAB)).all()
    lowest_kept = out.s1_logits.masked_fill(~kept, torch.inf).amin(-1)
    assert (out.s1_logits.masked_fill(kept, -torch.inf).amax(-1) <= lowest_kept).all()
    assert (out.energies[1:] <= out.energies[:-1] + 1e-12).all()


def test_best_of_n_never_ends_higher_and_depends_on_the_generator_alone():
    model, ids = tiny_nano_ebm(), tokens(2, SEQ)
    options = {"think_lr": 0.3, "langevin_noise": 0.5}

    def best(samples, seed=0, **more):
        with torch.no_grad():
            return model(ids, think_samples=samples, generator=torch.Generator().manual_seed(seed), **options, **more)

    one, four = best(1), best(4, output_trajectory=True)
    with torch.no_grad():
        assert torch.equal(one.logits, model(ids, think_lr=0.3).logits)  # evaluation without samples has no noise
    assert (four.energies[-1] <= one.energies[-1] + 1e-12).all()
    assert (four.energies[-1] < one.energies[-1] - 1e-6).any()
    assert torch.equal(four.logits, best(4).logits)
    assert not torch.equal(four.logits, best(4, seed=1).logits)
    assert_close(model.objective().energy(model.energy_field(ids), four.logits), four.energies[-1], atol=1e-11, rtol=0)
    padded = torch.ones_like(ids)
    padded[0, :2] = 0
    assert best(3, attention_mask=padded, think_topk=7).logits.shape == (2, SEQ, VOCAB)


def test_noise_is_for_training():
    model, ids = tiny_nano_ebm(langevin_noise=0.1), tokens(2, SEQ)
    still = trajectory(model, ids)
    assert torch.equal(still, trajectory(model, ids))
    model.train()
    assert not torch.equal(still, trajectory(model, ids))


# ------------------------------------------------------------------------------------------------------------- training


def test_the_loss_is_the_sum_it_says():
    model, ids = tiny_nano_ebm(think_steps=3, aux_ce_weight=0.25), tokens(2, SEQ)
    with torch.no_grad():
        out = model(ids, labels=ids, output_trajectory=True)
    nll = [nn.functional.cross_entropy(z[:, :-1].reshape(-1, VOCAB), ids[:, 1:].reshape(-1)) for z in out.trajectory]
    assert_close(out.nll_s1, nll[0])
    assert_close(out.nll_s2, nll[-1])
    assert_close(out.loss, 0.75 * sum(nll[1:]) / 3 + 0.25 * nll[0])
    model.config.refinement_loss = "last"
    with torch.no_grad():
        assert_close(model(ids, labels=ids).loss, 0.75 * nll[-1] + 0.25 * nll[0])
        assert_close(model(ids, labels=ids, num_items_in_batch=40).nll_s1, nll[0] * 20 / 40)


def test_the_temperature_is_applied_once():
    model, ids = tiny_nano_ebm(softmax_temperature=2.0, entropy_weight=2.0), tokens(2, SEQ)
    with torch.no_grad():
        out = model(ids, labels=ids, output_energies=True)
        hidden = model(ids, output_hidden_states=True).hidden_states[-1]
    assert_close(out.s1_logits, model.readout()(hidden) / 2, atol=1e-12, rtol=0)
    expected = nn.functional.cross_entropy(out.logits[:, :-1].reshape(-1, VOCAB), ids[:, 1:].reshape(-1))
    assert_close(out.nll_s2, expected)
    assert (out.energies[1:] <= out.energies[:-1] + 1e-12).all()


def test_gradient_reaches_every_parameter(model):
    model.train()
    ids = tokens(2, SEQ)
    model(ids, labels=ids).loss.backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or torch.count_nonzero(parameter.grad) == 0)
    ]
    # a row of 11 has no 12th position; nothing else is idle
    assert [name for name in without if "position_embedding" not in name] == []


def test_gradients_are_those_of_finite_differences():
    """Through both steps, the memory, the step sizes: a directional derivative of the training loss."""
    model, ids = tiny_nano_ebm(), tokens(2, SEQ)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.manual_seed(3)
    directions = [torch.randn_like(parameter) for parameter in parameters]
    model(ids, labels=ids).loss.backward()
    slope = sum((parameter.grad * way).sum() for parameter, way in zip(parameters, directions, strict=True))
    losses = []
    with torch.no_grad():
        for step in (1e-7, -2e-7):
            for parameter, way in zip(parameters, directions, strict=True):
                parameter.add_(way, alpha=step)
            losses.append(model(ids, labels=ids).loss)
    assert slope.item() == pytest.approx(((losses[0] - losses[1]) / 2e-7).item(), rel=1e-5)


def test_gradient_checkpointing_changes_no_gradient(model):
    ids = tokens(2, SEQ)
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.activation_checkpointing_enable()
        model.train().zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name], gradient, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("variant", ["default", "published", "soft tokens", "language model"])
def test_bfloat16_autocast_trains_and_stays_near(variant):
    model = tiny_nano_ebm(dtype=torch.float32, spread=0.05, **VARIANTS[variant]).train()
    ids = tokens(2, SEQ)
    exact = model(ids, labels=ids).loss
    with torch.autocast("cpu", torch.bfloat16):
        out = model(ids, labels=ids, output_energies=True)
    assert out.loss.dtype == out.energies.dtype == torch.float32
    assert out.loss.item() == pytest.approx(exact.item(), rel=1e-2)
    out.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_a_bfloat16_model_runs():
    model, ids = tiny_nano_ebm(dtype=torch.bfloat16, spread=0.05), tokens(2, SEQ)
    with torch.no_grad():
        out = model(ids, labels=ids)
    assert out.logits.dtype == torch.float32
    assert out.loss.isfinite()
    assert model.generate(ids[:, :3], max_new_tokens=3, do_sample=False).shape == (2, 6)


def test_a_hundred_steps_of_training_learn_and_thinking_helps():
    """A rule that the memory can hold: token t + 1 = successor of token t, the successors drawn anew in each row."""
    torch.manual_seed(0)
    model = NanoEBMForRefinement(NanoEBMConfig(**SIZES)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    first = None
    for _ in range(100):
        cycle = torch.rand(16, 8, generator=generator).argsort(-1) + 2
        ids = cycle.repeat(1, 4)
        out = model(ids, labels=ids)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        first = first if first is not None else out.nll_s2.item()
    assert out.nll_s2.item() < 0.6 * first
    assert out.nll_s2.item() < out.nll_s1.item()


# --------------------------------------------------------------------------------------------------------------- errors


def test_bad_input_is_refused_by_name():
    model, ids = tiny_nano_ebm(), tokens(2, 5)
    bad = [
        (TypeError, "input_ids must be an integer", lambda: model()),
        (TypeError, "input_ids must be an integer", lambda: model(ids.float())),
        (ValueError, r"input_ids must be in \[0, 64\), the vocabulary, got 2 to 64", lambda: model(ids.clamp(max=2).where(ids == ids[0, 0], 64))),
        (ValueError, "labels must have the shape", lambda: model(ids, labels=ids[:, 1:])),
        (ValueError, r"labels must be in \[0, 64\)", lambda: model(ids, labels=ids + 64)),
        (ValueError, "attention_mask must be of shape", lambda: model(ids, attention_mask=torch.ones(2, 4))),
        (ValueError, "segment_ids must be of shape", lambda: model(ids, segment_ids=torch.zeros(5))),
        (ValueError, "a row of 50 tokens exceeds the model's 48 positions", lambda: model(tokens(1, 50))),
        (ValueError, "think_steps must be an integer of at least 0, got -1", lambda: model(ids, think_steps=-1)),
        (ValueError, r"think_lr must be in \(0, 1\].*got 1.5", lambda: model(ids, think_lr=1.5)),
        (ValueError, r"think_lr must be in \(0, 1\]", lambda: model(ids, think_lr=0.0)),
        (ValueError, "think_topk must be", lambda: model(ids, think_topk=2.5)),
        (ValueError, "think_topk=3 gives the other tokens probability 0", lambda: model(ids, labels=ids, think_topk=3)),
        (ValueError, "logits_to_keep leaves positions out", lambda: model(ids, labels=ids, logits_to_keep=1)),
        (ValueError, "think_samples=4 with langevin_noise=0", lambda: model(ids, think_samples=4)),
        (ValueError, "think_max_move must be zero or positive", lambda: model(ids, think_max_move=-1.0)),
    ]  # fmt: skip
    for error, message, call in bad:
        with pytest.raises(error, match=message):
            call()


def test_a_row_longer_than_the_positions_by_padding_is_fine():
    model = tiny_nano_ebm()
    mask = torch.zeros(1, 60, dtype=torch.long)
    mask[:, 20:] = 1
    assert model(tokens(1, 60), attention_mask=mask).logits.shape == (1, 60, VOCAB)


@pytest.mark.parametrize("variant", ["default", "published"])
def test_the_training_loss_is_one_graph(variant):
    """torch.compile(fullgraph=True) finds nothing to break at; the eager backend keeps the numbers."""
    model, ids = tiny_nano_ebm(**VARIANTS[variant]).train(), tokens(2, SEQ)
    mask = torch.ones_like(ids)
    expected = model(ids, labels=ids, attention_mask=mask).loss
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_close(compiled(ids, labels=ids, attention_mask=mask).loss, expected, atol=1e-12, rtol=0)
