"""The whole model: against recomputing every candidate from scratch, and the invariances that a likelihood must have."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hf_elm.modeling.monarc import MonArcForCausalLM
from hf_elm.modeling.monarc.token_layout import token_layout
from tests.modeling.monarc.tiny_monarc import (
    ARCHITECTURES,
    VOCAB,
    energies_from_scratch,
    gradients,
    layout_inputs,
    tiny_monarc,
    tokens,
)


SEQ = 7
LAYOUTS = ("plain", "left", "right", "packed")


def layout_of(ids, inputs, **options):
    return token_layout(
        ids, inputs.get("attention_mask"), inputs.get("position_ids"), inputs.get("segment_ids"), **options
    )


# ------------------------------------------------------------------------------------------------- the oracle


@pytest.mark.parametrize(("kind", "layout"), [*zip(ARCHITECTURES, LAYOUTS, strict=True), ("llama", "packed")])
def test_energies_equal_recomputing_every_candidate_from_scratch(kind, layout):
    """3 decimal digits above float64 rounding: the sums are of up to 32 terms of size ~10."""
    ids, negatives, inputs = tokens(2, SEQ), tokens(2, 2, SEQ, seed=1), layout_inputs(layout, SEQ)
    model = tiny_monarc(kind)
    with torch.no_grad():
        everyone = torch.cat([ids.unsqueeze(1), negatives], 1)
        expected = energies_from_scratch(model, ids, everyone, layout_of(ids, inputs))
        out = model(input_ids=ids, labels=ids, negatives=negatives, **inputs)
        scores = model.score_candidates(ids, negatives, max_rows=2, **inputs)
    assert expected.abs().max() > 1
    assert_close(out.energies, expected[:, 0], atol=1e-11, rtol=0)
    assert_close(out.negative_energies, expected[:, 1:], atol=1e-11, rtol=0)
    assert_close(scores.energies, expected[:, 1:], atol=1e-11, rtol=0)
    assert_close(scores.token_energies, expected[:, 0], atol=1e-11, rtol=0)
    assert_close(
        scores.log_probs, out.negative_log_probs.masked_fill(~out.target_mask[:, None], 0), atol=1e-11, rtol=0
    )
    assert torch.equal(scores.target_mask, out.target_mask)


@pytest.mark.parametrize("layout", ["left", "packed"])
def test_gradients_equal_those_of_recomputing_from_scratch(layout):
    """The energy loss trains the LM through the shared keys and values as well: every parameter's gradient is compared."""
    ids, negatives, inputs = tokens(2, 5), tokens(2, 2, 5, seed=1), layout_inputs(layout, 5)
    model = tiny_monarc("llama")
    weights = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    everyone = torch.cat([ids.unsqueeze(1), negatives], 1)
    expected = gradients(model, (energies_from_scratch(model, ids, everyone, layout_of(ids, inputs)) * weights).sum())
    out = model(input_ids=ids, negatives=negatives, **inputs)
    ours = gradients(model, (torch.cat([out.energies.unsqueeze(1), out.negative_energies], 1) * weights).sum())
    ours = {name: gradient for name, gradient in ours.items() if name in expected}
    assert_close(ours, expected, atol=1e-9, rtol=1e-9)


def test_one_negative_changes_one_energy():
    ids, negatives = tokens(2, SEQ), tokens(2, 3, SEQ, seed=1)
    model = tiny_monarc("qwen2")
    with torch.no_grad():
        before = model(input_ids=ids, negatives=negatives)
        for place in ((0, 0, 1), (1, 2, 4), (0, 1, SEQ - 1)):
            changed = negatives.clone()
            changed[place] = (changed[place] + 1) % VOCAB
            after = model(input_ids=ids, negatives=changed)
            assert (after.negative_energies != before.negative_energies).nonzero().tolist() == [list(place)]
            assert torch.equal(after.energies, before.energies)


@pytest.mark.parametrize("layout", ["plain", "packed"])
def test_later_tokens_change_nothing_before_them(layout):
    ids, negatives, inputs = tokens(2, SEQ), tokens(2, 2, SEQ, seed=1), layout_inputs(layout, SEQ)
    model = tiny_monarc("stablelm", energy_adapter_rank=2)
    changed = ids.clone()
    changed[:, 4] = (changed[:, 4] + 1) % VOCAB
    with torch.no_grad():
        before, after = (model(input_ids=each, negatives=negatives, **inputs) for each in (ids, changed))
    for field in ("energies", "log_probs", "negative_energies", "negative_log_probs"):
        assert_close(after[field][..., :4], before[field][..., :4], atol=1e-12, rtol=0)
    assert_close(
        after.negative_energies[..., 4], before.negative_energies[..., 4], atol=1e-12, rtol=0
    )  # its own place
    assert not torch.equal(after.energies[:, 4], before.energies[:, 4])


# ------------------------------------------------------------------------------------------------ rows and padding


def documents():
    return [tokens(length, seed=10 + length) for length in (5, 3, 6, 2)]


def packed_rows():
    """The four documents in two rows of ten, and one to a row; with the place of each document in the packed rows."""
    docs = documents()
    ids, segments = torch.full((2, 10), 1), torch.full((2, 10), -1)
    positions, places = torch.zeros(2, 10, dtype=torch.long), []
    for row, pair in enumerate((docs[:2], docs[2:])):
        start = 0
        for number, doc in enumerate(pair):
            span = slice(start, start + len(doc))
            ids[row, span], segments[row, span], positions[row, span] = doc, number, torch.arange(len(doc))
            places.append((row, span))
            start += len(doc)
    alone, mask = torch.full((4, 6), 1), torch.zeros(4, 6, dtype=torch.long)
    for row, doc in enumerate(docs):
        alone[row, : len(doc)], mask[row, : len(doc)] = doc, 1
    return ids, segments, positions, places, alone, mask


@pytest.mark.parametrize(("kind", "reset"), [("gpt2", True), ("llama", True), ("stablelm", False)])
def test_packed_documents_have_the_losses_of_separate_rows(kind, reset):
    """Positions that count on within the row only shift rotary angles, whose tables are float32: then 1e-5 instead of 1e-10."""
    ids, segments, positions, places, alone, mask = packed_rows()
    negatives = tokens(2, 2, 10, seed=4)
    alone_negatives = torch.ones(4, 2, 6, dtype=torch.long)
    for row, (packed_row, span) in enumerate(places):
        alone_negatives[row, :, : span.stop - span.start] = negatives[packed_row, :, span]
    model = tiny_monarc(kind)
    packed = model(
        input_ids=ids,
        segment_ids=segments,
        position_ids=positions if reset else None,
        labels=ids.masked_fill(segments < 0, -100),
        negatives=negatives,
    )
    separate = model(
        input_ids=alone, attention_mask=mask, labels=alone.masked_fill(mask == 0, -100), negatives=alone_negatives
    )
    tolerance = {"atol": 1e-10, "rtol": 1e-10} if reset else {"atol": 1e-5, "rtol": 1e-5}
    assert packed.target_mask.sum() == separate.target_mask.sum() == 5 + 3 + 6 + 2 - 4
    for field in ("loss", "lm_loss", "energy_loss", "z_hat", "elm_nll_bound"):
        assert_close(packed[field], separate[field], **tolerance)


def test_padding_on_either_side_changes_nothing():
    model = tiny_monarc("gpt2", energy_adapter_rank=2)
    ids, negatives = tokens(1, 5), tokens(1, 2, 5, seed=1)
    plain = model(input_ids=ids, labels=ids, negatives=negatives)
    for left, right in ((3, 0), (0, 2), (2, 2)):
        pad = (left, right)
        mask = nn.functional.pad(torch.ones_like(ids), pad)
        row = nn.functional.pad(ids, pad, value=1)
        out = model(
            input_ids=row,
            attention_mask=mask,
            labels=row.masked_fill(mask == 0, -100),
            negatives=nn.functional.pad(negatives, pad, value=5),
        )
        place = slice(left, left + 5)
        for field in ("energies", "log_probs", "negative_energies"):
            assert_close(out[field][..., place], plain[field], atol=1e-11, rtol=0)
        assert_close(out.logits[:, place], plain.logits, atol=1e-11, rtol=0)
        for field in ("loss", "lm_loss", "energy_loss", "z_hat", "elm_nll_bound"):
            assert_close(out[field], plain[field], atol=1e-10, rtol=1e-10)
        assert torch.count_nonzero(out.energies * (1 - mask)) == 0


def test_labels_choose_what_is_counted_and_items_what_is_divided_by():
    ids = tokens(4, SEQ)
    labels = ids.clone()
    labels[0, 3:], labels[2, :5], labels[3] = -100, -100, -100
    negatives = tokens(4, 1, SEQ, seed=1)
    model = tiny_monarc()
    whole = model(input_ids=ids, labels=labels, negatives=negatives)
    counted = int(whole.target_mask.sum())
    assert counted == (labels[:, 1:] != -100).sum() == 10
    assert_close(whole.lm_loss, -whole.log_probs[whole.target_mask].mean())
    assert_close(whole.z_hat, torch.exp(-whole.negative_energies[:, 0])[whole.target_mask].mean())
    assert_close(whole.elm_nll_bound, whole.lm_loss + whole.energies[whole.target_mask].mean() + whole.z_hat - 1)
    assert_close(whole.loss, whole.elm_nll_bound)  # direct loss, weight 1: what is trained is the bound
    parts = [
        model(
            input_ids=ids[rows],
            labels=labels[rows],
            negatives=negatives[rows],
            num_items_in_batch=torch.tensor(counted),
        )
        for rows in (slice(0, 1), slice(1, 4))
    ]
    for field in ("loss", "lm_loss", "energy_loss", "z_hat", "elm_nll_bound"):
        total = sum(part[field] for part in parts)
        assert_close(total, whole[field], atol=1e-12, rtol=1e-12)


# ------------------------------------------------------------------------------------------------ energies and losses


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_wrapped_lm_is_that_lm_until_trained(kind):
    lm = tiny_monarc(kind, dtype=torch.float32).lm
    ids = tokens(2, SEQ)
    plain = lm(input_ids=ids, labels=ids)
    model = MonArcForCausalLM.from_causal_lm(lm, energy_adapter_rank=2)
    assert model.lm is lm
    out = model(input_ids=ids, labels=ids, num_negatives=3)
    assert torch.equal(out.logits, plain.logits)
    assert torch.count_nonzero(out.energies) == torch.count_nonzero(out.negative_energies) == 0
    assert_close(out.lm_loss, plain.loss)
    assert_close(out.z_hat, torch.tensor(1.0))
    assert_close(out.elm_nll_bound, out.lm_loss)
    moving = gradients(model, out.loss)
    assert moving["energy_head.previous_proj.weight"].abs().max() > 0  # from zero it can move


def test_negatives_are_drawn_from_the_lm():
    ids = tokens(2, SEQ)
    model = tiny_monarc()
    draws = 400
    out = model(input_ids=ids, labels=ids, num_negatives=draws, generator=torch.Generator().manual_seed(0))
    again = model(input_ids=ids, labels=ids, num_negatives=draws, generator=torch.Generator().manual_seed(0))
    assert torch.equal(out.negatives, again.negatives)
    assert out.negatives.shape == out.negative_energies.shape == (2, draws, SEQ)
    p = out.logits.softmax(-1)[:, :-1].detach()
    share = nn.functional.one_hot(out.negatives[:, :, 1:], VOCAB).double().mean(1)
    assert ((share - p).abs() <= 5 * (p * (1 - p) / draws).sqrt() + 2 / draws).all()  # 5 standard errors in 768 cells
    log_probs = out.logits.log_softmax(-1)[:, :-1].gather(-1, out.negatives[:, :, 1:].transpose(1, 2)).transpose(1, 2)
    assert_close(out.negative_log_probs[:, :, 1:], log_probs, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("form", "adapter", "layout"), [("direct", 0, "plain"), ("nce", 2, "packed"), ("rank", 0, "left")]
)
def test_a_fraction_of_the_negatives_estimates_the_same_loss(form, adapter, layout):
    """Mean over 300 draws of the positions within 4 standard errors of the full value, and gradients alike in one direction."""
    ids, negatives = tokens(2, SEQ), tokens(2, 1, SEQ, seed=1)
    model = tiny_monarc(spread=0.1, energy_adapter_rank=adapter)
    options = {
        "input_ids": ids,
        "labels": ids,
        "negatives": negatives,
        "energy_loss": form,
        **layout_inputs(layout, SEQ),
    }
    with torch.no_grad():
        full = model(**options)
        generator = torch.Generator().manual_seed(0)
        parts = [model(**options, negative_fraction=0.5, generator=generator) for _ in range(300)]
    for field in ("loss", "z_hat", "elm_nll_bound"):
        values = torch.stack([part[field] for part in parts])
        error = values.std() / len(values) ** 0.5
        assert error > 0
        assert abs(values.mean() - full[field]) <= 4 * error, field
        assert error < 0.2 * full[field].abs()
    for part in parts[:5]:
        scored = (part.negative_energies != 0).any(0).any(0)
        assert 0 < scored.sum() <= 3  # half of six places; some are counted in no row
        places = scored.nonzero().flatten()
        assert_close(part.negative_energies[..., places], full.negative_energies[..., places], atol=1e-11, rtol=0)
        assert_close(part.energies, full.energies, atol=1e-11, rtol=0)


def test_a_bound_holds_and_is_smooth():
    ids, negatives = tokens(2, SEQ), tokens(2, 2, SEQ, seed=1)
    free = tiny_monarc(spread=1.0)(input_ids=ids, negatives=negatives)
    bounded = tiny_monarc(spread=1.0, energy_bound=1.5)(input_ids=ids, negatives=negatives)
    assert free.negative_energies.abs().max() > 3
    assert bounded.negative_energies.abs().max() <= 1.5
    assert_close(bounded.energies, 1.5 * torch.tanh(free.energies / 1.5), atol=1e-12, rtol=0)


def test_a_linear_head_sees_the_token_alone():
    model = tiny_monarc(energy_head="linear")
    ids = tokens(2, SEQ)
    out = model(input_ids=ids, output_hidden_states=True)
    state = out.hidden_states[-1]  # after the decoder's final norm; the head has its own
    assert state.shape == (2, SEQ, 32)
    assert (out.energies[:, 1:] != 0).all()
    assert model.energy_head.proj.weight.shape == (1, 32)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_bfloat16_autocast_is_close_forward_and_backward(kind):
    """Relative error of values and gradients a few times 2^-8, the precision of bfloat16; losses are float32 sums."""
    ids, negatives = tokens(2, 32), tokens(2, 2, 32, seed=1)
    model = tiny_monarc(kind, dtype=torch.float32, spread=0.05, energy_adapter_rank=2).train()
    exact = model(input_ids=ids, labels=ids, negatives=negatives)
    expected = gradients(model, exact.loss)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(input_ids=ids, labels=ids, negatives=negatives)
    ours = gradients(model, out.loss)
    assert out.energies.dtype == out.log_probs.dtype == out.loss.dtype == torch.float32
    assert_close(out.lm_loss, exact.lm_loss, atol=1e-2, rtol=0)
    assert (out.negative_energies - exact.negative_energies).norm() <= 0.03 * exact.negative_energies.norm()
    for name, gradient in expected.items():
        assert (ours[name] - gradient).norm() <= 0.08 * gradient.norm() + 1e-4, name


def test_a_pure_bfloat16_model_divides_its_losses_exactly():
    """1/n does not fit into bfloat16: the divisor must stay in float32."""
    ids = tokens(3, SEQ)
    model = tiny_monarc(dtype=torch.bfloat16)
    out = model(input_ids=ids, labels=ids)
    assert out.energies.dtype == out.log_probs.dtype == torch.float32
    assert_close(out.lm_loss, -out.log_probs[out.target_mask].mean(), atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------------ calling conventions


def test_a_single_token_has_nothing_to_score():
    model, ids = tiny_monarc(), tokens(2, 1)
    out = model(input_ids=ids, labels=ids, num_negatives=2)
    assert out.loss == out.z_hat == 0
    assert out.energies.tolist() == [[0.0], [0.0]]
    assert out.logits.shape == (2, 1, VOCAB)
    out.loss.backward()
    assert model(input_ids=ids).energies.shape == (2, 1)


def test_logits_are_made_when_wanted():
    model, ids = tiny_monarc(), tokens(2, SEQ)
    full = model(input_ids=ids).logits
    assert full.shape == (2, SEQ, VOCAB)
    assert model.train()(input_ids=ids, labels=ids).logits is None
    assert torch.equal(model(input_ids=ids, labels=ids, output_logits=True).logits, full)
    assert model.eval()(input_ids=ids, labels=ids, output_logits=False).logits is None
    for kept, places in ((2, [SEQ - 2, SEQ - 1]), (torch.tensor([0, 3]), [0, 3])):
        assert_close(model(input_ids=ids, logits_to_keep=kept).logits, full[:, places], atol=1e-12, rtol=0)
    out = model(input_ids=ids, labels=ids, return_dict=False)
    assert isinstance(out, tuple)
    assert out[0].ndim == 0


def test_a_cache_or_embeddings_give_the_language_model_alone():
    model, ids = tiny_monarc("llama"), tokens(2, SEQ)
    full = model(input_ids=ids).logits
    first = model(input_ids=ids[:, :4], use_cache=True)
    assert first.energies is None
    assert first.final_state.shape == (2, 1, 32)
    rest = model(input_ids=ids[:, 4:], past_key_values=first.past_key_values)
    assert_close(torch.cat([first.logits, rest.logits], 1), full, atol=1e-12, rtol=0)
    embedded = model(inputs_embeds=model.get_input_embeddings()(ids))
    assert_close(embedded.logits, full, atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="pass no past_key_values and no inputs_embeds"):
        model(input_ids=ids, past_key_values=first.past_key_values, labels=ids)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": "shifted"}, ValueError, "labels must equal input_ids"),
        ({"negatives": tokens(2, SEQ)}, ValueError, r"negatives must be of shape \(batch, K, seq\)"),
        ({"negatives": tokens(2, 1, SEQ).float()}, TypeError, "torch.int64"),
        ({"negatives": tokens(2, 1, SEQ) + VOCAB}, ValueError, r"in \[0, 64\), the vocabulary"),
        ({"num_negatives": 0}, ValueError, "num_negatives must be at least 1, got 0"),
        ({"energy_loss": "mse"}, ValueError, "energy_loss must be one of"),
        ({"negative_fraction": 0.0}, ValueError, r"negative_fraction must be in \(0, 1\], got 0.0"),
        ({"attention_mask": torch.ones(2, 3)}, ValueError, "attention_mask must have the shape of input_ids"),
    ],
)
def test_bad_input_is_refused(change, error, message):
    ids = tokens(2, SEQ)
    inputs = {"input_ids": ids, "labels": ids, **change}
    if change == {"labels": "shifted"}:
        inputs["labels"] = ids.roll(-1, 1)
    with pytest.raises(error, match=message):
        tiny_monarc()(**inputs)


def test_documents_are_not_lost_silently_on_the_way_to_the_lm_alone():
    ids = tokens(2, SEQ)
    with pytest.raises(ValueError, match="segment_ids go with energies or losses"):
        tiny_monarc()(input_ids=ids, segment_ids=torch.zeros_like(ids), output_energies=False)


def test_scored_candidates_are_checked_too():
    with pytest.raises(ValueError, match=r"candidates must be of shape \(batch, K, seq\) = \(2, K >= 1, 7\)"):
        tiny_monarc().score_candidates(tokens(2, SEQ), tokens(2, 3, SEQ - 1))


@pytest.mark.parametrize("wrap", [lambda head: nn.Sequential(head), lambda head: head])
def test_a_replaced_head_gives_the_same_losses(wrap):
    """A head that is no plain linear layer (LoRA, quantised) is called as it is."""
    ids, negatives = tokens(2, SEQ), tokens(2, 2, SEQ, seed=1)
    model = tiny_monarc(lm_loss_chunk_size=4)
    expected = gradients(model, (before := model(input_ids=ids, labels=ids, negatives=negatives)).loss)
    model.lm.lm_head = wrap(model.lm.lm_head)
    after = model(input_ids=ids, labels=ids, negatives=negatives)
    assert_close(after.loss, before.loss, atol=1e-12, rtol=1e-12)
    ours = {name.replace("lm_head.0", "lm_head"): value for name, value in gradients(model, after.loss).items()}
    assert_close(ours, expected, atol=1e-10, rtol=1e-10)


def test_the_vocabulary_can_grow():
    model, ids = tiny_monarc("llama", dtype=torch.float32), tokens(2, SEQ)
    before = model(input_ids=ids)
    model.resize_token_embeddings(VOCAB + 3)
    after = model(input_ids=ids, negatives=torch.full((2, 1, SEQ), VOCAB + 2))
    assert after.logits.shape[-1] == VOCAB + 3
    assert model.config.text_config.vocab_size == VOCAB + 3
    assert_close(after.logits[..., :VOCAB], before.logits)
