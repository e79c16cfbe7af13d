"""`generate` with candidates: its energies are the training path's, its law tends to the ELM's, and it runs the trunk once per token."""

import pytest
import torch
from torch.testing import assert_close

from hf_elm.modeling.monarc.candidate_decoding import CandidateDecodingOutput
from hf_elm.modeling.monarc.candidate_set import choice_weights, draw_candidates
from tests.modeling.monarc.tiny_decoding import (
    LMS,
    NEW,
    VOCAB,
    build,
    check_cache,
    exact_step,
    generate,
    padded_prompt,
    with_new_tokens,
)


# ------------------------------------------------------------------------------------------------------ energies


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("kind", LMS)
def test_decoding_energies_equal_the_training_path(kind, rank):
    model, inputs = build(kind, energy_adapter_rank=rank), padded_prompt()
    out = generate(model, **inputs, return_dict_in_generate=True, output_logits=True)
    scored = model(**with_new_tokens(inputs, out.sequences))
    assert isinstance(out, CandidateDecodingOutput)
    assert out.energies.std() > 0.1  # there is something to compare
    assert_close(out.energies, scored.energies[:, -NEW:], atol=1e-10, rtol=0)
    log_probs = torch.stack(out.logits, 1).log_softmax(-1).gather(-1, out.sequences[:, -NEW:, None]).squeeze(-1)
    assert_close(log_probs, scored.log_probs[:, -NEW:], atol=1e-10, rtol=0)


@pytest.mark.parametrize("fields", [{}, {"energy_bound": 0.5}, {"energy_head": "linear"}, {"energy_adapter_rank": 2}])
def test_float32_energies_and_eager_attention(fields):
    model, inputs = build("stablelm", torch.float32, **fields), padded_prompt()
    model.set_attn_implementation("eager")
    out = generate(model, **inputs, return_dict_in_generate=True)
    scored = model(**with_new_tokens(inputs, out.sequences))
    assert_close(out.energies, scored.energies[:, -NEW:], atol=1e-6, rtol=1e-6)


def test_other_attention_switches_to_sdpa_while_candidates_run():
    model, inputs = build(), padded_prompt()
    expected = generate(model, **inputs)
    model.set_attn_implementation("flex_attention")
    config = model.lm.get_decoder().config
    seen = []
    model.lm.get_decoder().register_forward_pre_hook(lambda *_: seen.append(config._attn_implementation))
    prefill = model._prefill

    def sdpa_prefill(*args, **kwargs):  # the implementation under test is that of the steps
        model.set_attn_implementation("sdpa")
        out = prefill(*args, **kwargs)
        model.set_attn_implementation("flex_attention")
        return out

    model._prefill = sdpa_prefill
    assert torch.equal(generate(model, **inputs), expected)
    assert set(seen) == {"sdpa"}
    assert config._attn_implementation == "flex_attention"


@pytest.mark.parametrize("rank", [0, 3])
def test_cache_equals_a_plain_forward_pass(rank):
    model, inputs = build(energy_adapter_rank=rank), padded_prompt()
    check_cache(model, inputs, generate(model, **inputs, return_dict_in_generate=True, max_new_tokens=90))


def test_a_returned_cache_continues_the_text():
    model, inputs = build(), padded_prompt()
    whole = generate(model, **inputs, do_sample=False, max_new_tokens=8)
    first = generate(model, **inputs, do_sample=False, max_new_tokens=3, return_dict_in_generate=True)
    rest = with_new_tokens(inputs, first.sequences)
    both = generate(model, **rest, do_sample=False, max_new_tokens=5, past_key_values=first.past_key_values)
    assert torch.equal(both, whole)


# ------------------------------------------------------------------------------------------------ cost: one pass per token


@pytest.mark.parametrize(("rank", "twins"), [(0, 1), (3, 2)])
def test_one_trunk_pass_per_token_as_wide_as_the_distinct_candidates(rank, twins):
    model, inputs = build(energy_adapter_rank=rank), padded_prompt()
    widths, head_rows = [], []
    model.lm.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    model.lm.lm_head.register_forward_pre_hook(lambda _, args: head_rows.append(args[0].numel() // args[0].shape[-1]))
    out = generate(model, **inputs, return_dict_in_generate=True, temperature=0.4)
    counts = out.candidate_counts
    assert 1 < counts.min() < counts.max() <= 8
    assert widths == [inputs["input_ids"].shape[1], *(twins * counts.amax(0)).tolist()]
    assert head_rows == [2] * NEW  # one row of the LM head per sequence and token


def test_repeated_candidates_cost_no_row():
    scores = torch.tensor([[50.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    torch.manual_seed(0)
    one_row = draw_candidates(scores[:1], 16, "sample")
    assert one_row.tokens.tolist() == [[0]]
    assert_close(one_row.log_weights.exp(), torch.tensor([[16.0]]))
    both = draw_candidates(scores, 16, "sample")
    assert both.tokens[0].tolist() == [0, 0, 0, 0]  # padded by its own token ...
    assert choice_weights(both.log_weights)[0].tolist() == [1, 0, 0, 0]  # ... which is never chosen there
    assert both.log_weights[1].exp().sum().round() == 16


def test_topk_candidates_leave_out_impossible_tokens():
    scores = torch.tensor([[1.0, -torch.inf, 2.0, -torch.inf], [0.0, 3.0, 1.0, -torch.inf]])
    drawn = draw_candidates(scores, 4, "topk")
    assert drawn.tokens.tolist() == [[2, 0, 2], [1, 2, 0]]
    assert drawn.log_weights.tolist() == [[2.0, 1.0, -torch.inf], [3.0, 1.0, 0.0]]


# -------------------------------------------------------------------------------------------------------------- law


def emitted_law(log_probs, energies, count, mode, steps=8_000):
    """Rao-Blackwellised estimate of the law of the emitted token from ``steps`` draws of candidates, ``(vocab,)``."""
    torch.manual_seed(0)
    drawn = draw_candidates(log_probs.expand(steps, -1), count, mode)
    weights = choice_weights(drawn.log_weights - energies[drawn.tokens])
    return torch.zeros(VOCAB, dtype=weights.dtype).index_add_(0, drawn.tokens.flatten(), weights.flatten()) / steps


def test_law_tends_to_the_elm_as_candidates_grow():
    model, inputs = build(), padded_prompt(padding=0)
    log_probs, energies = (x[0] for x in exact_step(model, **inputs))
    exact = torch.softmax(log_probs - energies, -1)
    distance = lambda law: 0.5 * (law - exact).abs().sum().item()  # noqa: E731
    distances = {k: distance(emitted_law(log_probs, energies, k, "sample")) for k in (1, 4, 16, 64)}
    assert distances[1] == pytest.approx(distance(log_probs.exp()), abs=0.02)  # K = 1 is the LM
    assert distances[1] > 0.1
    assert distances[4] < 0.6 * distances[1]
    assert distances[16] < 0.4 * distances[4]
    assert distances[64] < 0.6 * distances[16]
    whole = emitted_law(log_probs, energies, VOCAB, "topk", steps=1)
    assert_close(whole, exact)  # all tokens as candidates: the ELM itself


def test_generate_emits_the_law_of_its_helpers():
    model, inputs = build(), padded_prompt(padding=0)
    rows = {name: x[:1].expand(4_000, -1) for name, x in inputs.items()}
    log_probs, energies = (x[0] for x in exact_step(model, **{n: x[:1] for n, x in inputs.items()}))
    tokens = generate(model, **rows, max_new_tokens=1, num_candidates=6)[:, -1]
    frequencies = torch.bincount(tokens, minlength=VOCAB) / len(tokens)
    expected = emitted_law(log_probs, energies, 6, "sample")
    # a multinomial sample of 4,000 is off by about sqrt(64 / (2 pi 4000)) = 0.05 in total variation, the LM by > 0.1 more
    assert 0.5 * (frequencies - expected).abs().sum() < 0.075
    assert 0.5 * (frequencies - log_probs.exp()).abs().sum() > 0.1


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.7}, {"num_candidates": 3}])
def test_greedy_is_the_argmax_over_candidates(options):
    model, inputs = build(), padded_prompt()
    count = options.get("num_candidates", 8)
    sequences = generate(model, **inputs, do_sample=False, **options)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    changed = 0
    for _ in range(NEW):
        log_probs, energies = exact_step(model, ids, mask)
        if penalty := options.get("repetition_penalty"):
            logits = model(ids, attention_mask=mask).logits[:, -1]
            seen = logits.gather(1, ids)
            log_probs = logits.scatter(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))
        among = torch.full_like(log_probs, -torch.inf).scatter(1, log_probs.topk(count).indices, 0.0)
        best = (log_probs - energies + among).argmax(-1)
        changed += (best != log_probs.argmax(-1)).sum()
        row = with_new_tokens({"input_ids": ids, "attention_mask": mask}, torch.cat([ids, best[:, None]], 1))
        ids, mask = row["input_ids"], row["attention_mask"]
    assert torch.equal(sequences, ids)
    assert changed > 0  # the energies had a say


# ------------------------------------------------------------------------------------------------------- one candidate


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "top_k": 7},
        {"do_sample": False},
        {"num_beams": 3, "do_sample": False},
        {"use_cache": False},
    ],
)
def test_one_candidate_is_the_language_model(options):
    model, inputs = build(), padded_prompt()
    expected = generate(model.lm, **inputs, **options)
    assert torch.equal(generate(model, **inputs, **options, num_candidates=1), expected)


def test_zero_energies_and_all_candidates_are_the_language_model():
    model, inputs = build(energy_std=0.0), padded_prompt()
    expected = generate(model.lm, **inputs, do_sample=False)
    assert torch.equal(generate(model, **inputs, do_sample=False), expected)
