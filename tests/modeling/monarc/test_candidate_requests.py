"""Candidate decoding among transformers' own generation options, and requests that it refuses."""

import threading

import pytest
import torch
from torch.testing import assert_close
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria

from hf_elm.modeling.monarc.configuration_monarc import MonArcConfig
from hf_elm.modeling.monarc.modeling_monarc import MonArcForCausalLM
from tests.modeling.monarc.tiny_decoding import (
    NEW,
    VOCAB,
    build,
    check_cache,
    generate,
    padded_prompt,
    with_new_tokens,
)


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
