"""`generate` with candidates: its energies are the training path's, its law tends to the ELM's, and it runs the trunk once per token."""

import threading

import pytest
import torch
from torch.testing import assert_close
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria

from hf_elm.modeling.monarc.candidate_decoding import CandidateDecodingOutput
from hf_elm.modeling.monarc.candidate_set import choice_weights, draw_candidates
from hf_elm.modeling.monarc.configuration_monarc import MonArcConfig
from hf_elm.modeling.monarc.modeling_monarc import MonArcForCausalLM
from tests.modeling.monarc.tiny_monarc import double_precision_norms


VOCAB, NEW = 64, 6
NO_IDS = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
LLAMA_LIKE = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, **NO_IDS,
)  # fmt: skip
LMS = {
    "stablelm": LLAMA_LIKE,
    "llama": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "opt": dict(LLAMA_LIKE, ffn_dim=64, word_embed_proj_dim=32),  # linear layers that see batch and sequence as one
    "gpt2": dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128, **NO_IDS),
}


def build(kind="llama", dtype=torch.float64, energy_std=0.15, **fields):
    """A tiny model whose energies differ by about a nat between tokens."""
    torch.manual_seed(0)
    model = MonArcForCausalLM(MonArcConfig(text_config={"model_type": kind, **LMS[kind]}, **fields))
    for name, weight in model.named_parameters():
        if name.startswith("energy") and "norm" not in name:
            torch.nn.init.normal_(weight, std=energy_std)
        elif weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return double_precision_norms(model.to(dtype)).eval()


def padded_prompt(batch=2, length=7, padding=3):
    """``batch`` rows, the first of them left-padded."""
    ids = torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    return {"input_ids": ids, "attention_mask": mask}


def generate(model, seed=0, **options):
    options = {"max_new_tokens": NEW, "do_sample": True, "top_k": 0, "pad_token_id": 0} | options
    torch.manual_seed(seed)
    return model.generate(**options)


def with_new_tokens(inputs, sequences):
    """``inputs`` of a plain forward pass over what was generated."""
    new = sequences.shape[1] - inputs["input_ids"].shape[1]
    mask = inputs["attention_mask"]
    return {"input_ids": sequences, "attention_mask": torch.cat([mask, mask.new_ones(mask.shape[0], new)], 1)}


def exact_step(model, input_ids, attention_mask):
    """(LM log-probabilities, energies) of every token of the vocabulary as the next one, ``(batch, vocab)`` each."""
    row = with_new_tokens(
        {"input_ids": input_ids, "attention_mask": attention_mask}, torch.nn.functional.pad(input_ids, (0, 1))
    )
    candidates = torch.arange(VOCAB)[None, :, None].expand(input_ids.shape[0], -1, row["input_ids"].shape[1])
    scores = model.score_candidates(candidates=candidates.contiguous(), **row)
    return scores.log_probs[..., -1], scores.energies[..., -1]


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


def check_cache(model, inputs, out):
    """The returned cache is that of a plain forward pass; as in transformers, the last token has not entered it yet."""
    row = with_new_tokens(inputs, out.sequences[:, :-1])
    positions = (row["attention_mask"].cumsum(1) - 1).clamp(min=0)
    plain = DynamicCache(config=model.config.get_text_config())
    model(**row, position_ids=positions, past_key_values=plain, use_cache=True)
    assert type(out.past_key_values) is DynamicCache
    assert out.past_key_values.get_seq_length() == out.sequences.shape[1] - 1
    token = row["attention_mask"].bool()[:, None, :, None]
    for kept, expected in zip(out.past_key_values.layers, plain.layers, strict=True):
        assert_close(kept.keys * token, expected.keys * token, atol=1e-10, rtol=0)
        assert_close(kept.values * token, expected.values * token, atol=1e-10, rtol=0)


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


# -------------------------------------------------------------------------------------------- transformers' machinery


class Recorder:
    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, tokens):
        self.tokens.append(tokens.flatten())

    def end(self):
        self.ended = True


class StopAfter(StoppingCriteria):
    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.length)


class Only(LogitsProcessor):
    def __init__(self, allowed):
        self.allowed = allowed

    def __call__(self, input_ids, scores):
        return torch.full_like(scores, -torch.inf).index_copy_(1, self.allowed, scores[:, self.allowed])


def test_streamer_gets_every_token():
    model, inputs = build(), padded_prompt(batch=1, padding=0)
    streamer = Recorder()
    sequences = generate(model, **inputs, streamer=streamer)
    assert torch.equal(torch.cat(streamer.tokens), sequences[0])
    assert streamer.ended


def test_finished_rows_are_padded_and_score_nothing():
    model, inputs = build(), padded_prompt()
    free = generate(model, **inputs, do_sample=False, max_new_tokens=12)
    eos = int(free[1, 9])  # the second row ends here, if not before
    out = generate(
        model,
        **inputs,
        do_sample=False,
        max_new_tokens=12,
        eos_token_id=eos,
        pad_token_id=0,
        return_dict_in_generate=True,
    )
    end = int((out.sequences[1, 7:] == eos).nonzero()[0])
    assert torch.equal(out.sequences[1, : 7 + end + 1], free[1, : 7 + end + 1])
    assert (out.sequences[1, 7 + end + 1 :] == 0).all()
    assert (out.energies[1, end + 1 :] == 0).all()
    assert (out.candidate_counts[1, end + 1 :] == 0).all()
    check_cache(model, inputs, out)
    first = min([7 + 12, *(7 + 1 + (free[0, 7:] == eos).nonzero().flatten()).tolist()])
    assert torch.equal(out.sequences[0, :first], free[0, :first])  # the other row does not notice


def test_generation_stops_when_every_row_has_ended():
    model, inputs = build(), padded_prompt()
    every = list(range(1, VOCAB))
    assert generate(model, **inputs, eos_token_id=every, bad_words_ids=[[0]]).shape[1] == 8
    assert generate(model, **inputs, stopping_criteria=[StopAfter(10)]).shape[1] == 10


@pytest.mark.parametrize("mode", ["sample", "topk"])
@pytest.mark.parametrize("options", [{"temperature": 0.3}, {"top_k": 3}, {"top_p": 0.3}])
def test_processors_apply_to_the_language_model(options, mode):
    model, inputs = build(), padded_prompt()
    out = generate(
        model,
        **inputs,
        **options,
        candidate_mode=mode,
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert len(out.scores) == len(out.logits) == NEW
    for step, (scores, logits) in enumerate(zip(out.scores, out.logits, strict=True)):
        token = out.sequences[:, 7 + step, None]
        assert scores.gather(1, token).isfinite().all()
        if "temperature" in options:
            assert_close(scores, logits / 0.3)
    if "top_k" in options:
        assert out.candidate_counts.max() <= 3
    scored = model(**with_new_tokens(inputs, out.sequences))  # energies still read the unprocessed log-probability
    assert_close(out.energies, scored.energies[:, -NEW:], atol=1e-10, rtol=0)


def test_logits_processor_limits_the_candidates():
    model, inputs = build(), padded_prompt()
    allowed = torch.tensor([3, 5])
    tokens = generate(model, **inputs, logits_processor=LogitsProcessorList([Only(allowed)]), max_new_tokens=20)[:, 7:]
    assert set(tokens.flatten().tolist()) == {3, 5}


def test_seed_decides():
    model, inputs = build(), padded_prompt()
    assert torch.equal(generate(model, **inputs, seed=3), generate(model, **inputs, seed=3))
    assert not torch.equal(generate(model, **inputs, seed=3), generate(model, **inputs, seed=4))


def test_padding_and_batch_do_not_matter():
    model, inputs = build(), padded_prompt()
    both = generate(model, **inputs, do_sample=False)
    alone = generate(model, input_ids=inputs["input_ids"][:1, 3:], do_sample=False)
    assert torch.equal(both[0, 3:], alone[0])


@pytest.mark.parametrize("length", [1, 7])
def test_short_and_chunked_prompts(length):
    model, ids = build(), torch.randint(1, VOCAB, (2, length))
    plain = generate(model, input_ids=ids, do_sample=False, return_dict_in_generate=True)
    assert torch.equal(generate(model, input_ids=ids, do_sample=False, prefill_chunk_size=3), plain.sequences)
    assert_close(plain.energies, model(plain.sequences).energies[:, -NEW:], atol=1e-10, rtol=0)


def test_embedded_prompts():
    model, ids = build(), torch.randint(1, VOCAB, (2, 5))
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(
        generate(model, inputs_embeds=embeds, do_sample=False), generate(model, input_ids=ids, do_sample=False)[:, 5:]
    )


def test_hidden_states_of_the_kept_tokens():
    model, inputs = build(), padded_prompt(padding=0)
    out = generate(model, **inputs, return_dict_in_generate=True, output_hidden_states=True)
    whole = model(out.sequences, output_hidden_states=True, output_energies=False).hidden_states
    assert len(out.hidden_states) == NEW
    for layer, expected in enumerate(whole):
        steps = torch.cat([step[layer] for step in out.hidden_states], 1)
        assert_close(steps, expected[:, :-1], atol=1e-10, rtol=0)


def test_threads_may_share_a_model():
    model, inputs = build(), padded_prompt()
    expected = generate(model, **inputs, do_sample=False, max_new_tokens=20)
    results = []
    options = {**inputs, "do_sample": False, "max_new_tokens": 20, "pad_token_id": 0}
    threads = [threading.Thread(target=lambda: results.append(model.generate(**options))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert all(torch.equal(result, expected) for result in results)


def test_autocast():
    model, inputs = build(dtype=torch.float32), padded_prompt(padding=0)
    with torch.autocast("cpu", torch.bfloat16):
        out = generate(model, **inputs, return_dict_in_generate=True)
        scored = model(out.sequences)
    assert_close(out.energies, scored.energies[:, -NEW:], atol=0.1, rtol=0)  # bfloat16: 8 bits of mantissa


def test_several_sequences_per_prompt():
    model, inputs = build(), padded_prompt()
    assert generate(model, **inputs, num_return_sequences=3).shape == (6, 7 + NEW)


# ------------------------------------------------------------------------------------------------------------ rewards


@pytest.mark.parametrize("do_sample", [True, False])
def test_extra_energy_steers(do_sample):
    model, inputs = build(), padded_prompt()
    seen = []

    def odd_tokens(input_ids, candidates):
        seen.append((input_ids.shape[1], candidates.shape[0]))
        return 30.0 * (candidates % 2 == 0)

    out = generate(
        model, **inputs, extra_energy=odd_tokens, num_candidates=32, do_sample=do_sample, return_dict_in_generate=True
    )
    assert (out.sequences[:, 7:] % 2 == 1).all()
    assert seen == [(7 + step, 2) for step in range(NEW)]
    scored = model(**with_new_tokens(inputs, out.sequences))  # the reported energies are the model's own
    assert_close(out.energies, scored.energies[:, -NEW:], atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("extra_energy", "error", "message"),
    [
        (lambda ids, candidates: candidates[:, :1].double(), ValueError, r"\(batch, width\)"),
        (lambda ids, candidates: 0.0, ValueError, "got float"),
        (lambda ids, candidates: torch.full(candidates.shape, torch.inf), ValueError, "forbids every candidate"),
        (lambda ids, candidates: torch.full(candidates.shape, torch.nan), ValueError, "NaN"),
        (3.0, TypeError, "callable"),
    ],
)
def test_bad_extra_energy_is_refused(extra_energy, error, message):
    model, inputs = build(), padded_prompt()
    with pytest.raises(error, match=message):
        generate(model, **inputs, extra_energy=extra_energy)


# ------------------------------------------------------------------------------------------------------ configuration


def test_options_are_saved_with_the_model(tmp_path):
    model, inputs = build(), padded_prompt()
    assert (model.generation_config.num_candidates, model.generation_config.candidate_mode) == (8, "sample")
    model.generation_config.num_candidates = 5
    model.save_pretrained(tmp_path)
    assert (tmp_path / "shared_prefix.py").is_file()
    loaded = MonArcForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert (loaded.generation_config.num_candidates, loaded.generation_config.candidate_mode) == (5, "sample")
    assert torch.equal(generate(loaded, **inputs), generate(model, **inputs, num_candidates=5))


def test_options_are_there_when_a_plain_language_model_is_loaded(tmp_path):
    lm = build().lm
    lm.save_pretrained(tmp_path)
    loaded = MonArcForCausalLM.from_pretrained(tmp_path, config=MonArcConfig(text_config=lm.config))
    assert loaded.generation_config.num_candidates == 8
    assert MonArcForCausalLM.from_causal_lm(tmp_path).generation_config.num_candidates == 8


def test_a_generation_config_may_lack_or_set_the_options():
    model, inputs = build(), padded_prompt()
    common = dict(max_new_tokens=NEW, do_sample=True, top_k=0, pad_token_id=0)
    outputs = []
    for config in (GenerationConfig(**common), GenerationConfig(**common, num_candidates=4)):
        torch.manual_seed(0)
        outputs.append(model.generate(**inputs, generation_config=config))
    assert torch.equal(outputs[0], generate(model, **inputs))
    assert torch.equal(outputs[1], generate(model, **inputs, num_candidates=4))
    model.generation_config = GenerationConfig()
    assert torch.equal(generate(model, **inputs, num_candidates=4), outputs[1])


def test_text_generation_pipeline():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, pipeline

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0")
    model = build()
    expected = generate(model, input_ids=torch.tensor([[3, 1, 4]]), do_sample=False, num_candidates=3)
    writer = pipeline("text-generation", model=model, tokenizer=tokenizer)
    written = writer("w3 w1 w4", max_new_tokens=NEW, do_sample=False, num_candidates=3, return_tensors=True)
    assert written[0]["generated_token_ids"] == expected[0].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_candidates": 0}, "num_candidates must be an integer of at least 1, got 0"),
        ({"num_candidates": 2.5}, "num_candidates must be an integer"),
        ({"num_candidates": True}, "num_candidates must be an integer"),
        ({"candidate_mode": "beam"}, "candidate_mode must be one of"),
        ({"num_beams": 2, "do_sample": False}, "beam_search.*num_candidates=1"),
        ({"penalty_alpha": 0.6, "top_k": 4, "do_sample": False}, "contrastive_search.*num_candidates=1"),
        ({"prompt_lookup_num_tokens": 3}, "assisted_generation.*num_candidates=1"),
        ({"assistant_model": True}, "assisted_generation.*num_candidates=1"),
        ({"use_cache": False}, "use_cache=True.*num_candidates=1"),
        ({"cache_implementation": "static"}, "DynamicCache.*StaticCache.*num_candidates=1"),
        ({"cache_implementation": "offloaded"}, "DynamicCache.*offloaded.*num_candidates=1"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions"),
        ({"synced_gpus": True}, "sharded.*num_candidates=1"),
        ({"num_candidates": 1, "extra_energy": lambda ids, candidates: candidates.double()}, "extra_energy"),
        ({"num_candidate": 4}, "num_candidate"),
    ],
)
def test_impossible_requests_are_refused(options, message):
    model, inputs = build(), padded_prompt()
    if options.get("assistant_model"):
        options = {"assistant_model": model.lm}
    with pytest.raises(ValueError, match=message):
        generate(model, **inputs, **options)


def test_gradient_checkpointing_in_training_mode_is_refused():
    model, inputs = build(), padded_prompt()
    model.activation_checkpointing_enable()
    model.train()
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        generate(model, **inputs)
