"""generate(): cached equals uncached, greedy equals the trajectory's own argmax, options travel with the saved model."""

import json

import pytest
import torch
from torch.testing import assert_close

from hf_elm.modeling.nano_ebm import NanoEBMForRefinement
from tests.modeling.nano_ebm.tiny_nano_ebm import TEXT_CONFIG, VOCAB, tiny_nano_ebm, tokens


MODELS = {
    "default": {},
    "states only": {"energy_context": 0, "energy_power": 1, "energy_feedback": 1.0},
    "rope": {"position_type": "rope"},
    "soft tokens": {"use_soft_tokens": True},
    "stop": {"think_tolerance": 1e-2, "think_steps": 5},
    "language model": {"text_config": TEXT_CONFIG},
    "linear": {"energy_type": "linear", "entropy_weight": 0.5},
}
SEARCHES = {
    "greedy": {"do_sample": False},
    "beams": {"num_beams": 3, "do_sample": False},
    "topk": {"do_sample": False, "think_topk": 5, "think_steps": 4},
    "system 1": {"do_sample": False, "use_thinking": False},
}
COMMON = {"max_new_tokens": 8, "pad_token_id": 1, "eos_token_id": None}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("name", MODELS)
def test_cached_equals_uncached_with_left_padding(name, search):
    model, ids = tiny_nano_ebm(**MODELS[name]), tokens(2, 7)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    options = {**COMMON, **SEARCHES[search], "output_logits": True, "return_dict_in_generate": True}
    cached, uncached = (
        model.generate(ids, attention_mask=mask, use_cache=cache, **options) for cache in (True, False)
    )
    assert torch.equal(cached.sequences, uncached.sequences)
    for found, expected in zip(cached.logits, uncached.logits, strict=True):
        assert_close(found, expected, atol=1e-9, rtol=0)
    alone = model.generate(ids[:1, 3:], **COMMON, **SEARCHES[search])
    assert torch.equal(alone[0], cached.sequences[0, 3:])


def test_greedy_takes_the_likeliest_refined_token():
    model, ids = tiny_nano_ebm(), tokens(1, 5)
    for steps in (1, 4):
        found = model.generate(ids, do_sample=False, think_steps=steps, **COMMON)
        row = ids
        with torch.no_grad():
            for _ in range(8):
                row = torch.cat([row, model(row, think_steps=steps).logits[:, -1:].argmax(-1)], 1)
        assert torch.equal(found, row)


def test_only_the_last_position_is_refined(monkeypatch):
    model, ids = tiny_nano_ebm(), tokens(2, 5)
    from hf_elm.modeling.nano_ebm import modeling_nano_ebm

    refined, refine = [], modeling_nano_ebm.refine
    monkeypatch.setattr(
        modeling_nano_ebm, "refine", lambda field, start, *args, **kw: refined.append(start.shape) or refine(field, start, *args, **kw)
    )  # fmt: skip
    model.generate(ids, do_sample=False, **COMMON)
    assert refined == [(2, 1, VOCAB)] * 8


def test_sampling_obeys_its_filters_and_seed():
    model, ids = tiny_nano_ebm(), tokens(4, 5)
    options = {**COMMON, "do_sample": True, "temperature": 1.2, "top_p": 0.9, "output_logits": True}

    def sampled(seed, **more):
        torch.manual_seed(seed)
        return model.generate(ids, return_dict_in_generate=True, **options, **more)

    first, again, other = sampled(0), sampled(0), sampled(1)
    assert torch.equal(first.sequences, again.sequences)
    assert not torch.equal(first.sequences, other.sequences)
    few = sampled(0, think_topk=3)
    for logits, token in zip(few.logits, few.sequences[:, 5:].T, strict=True):
        assert (logits > -torch.inf).sum() == 4 * 3
        assert logits.gather(1, token.unsqueeze(1)).isfinite().all()


def test_best_of_n_repeats_with_its_generator():
    model, ids = tiny_nano_ebm(), tokens(1, 5)
    options = {**COMMON, "do_sample": False, "think_samples": 4, "langevin_noise": 0.5, "think_lr": 0.3}
    rows = [model.generate(ids, generator=torch.Generator().manual_seed(seed), **options) for seed in (0, 0)]
    assert torch.equal(*rows)


class Streamer:
    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, value):
        self.tokens.extend(value.flatten().tolist())

    def end(self):
        self.ended = True


def test_streamers_see_every_token():
    model, ids, streamer = tiny_nano_ebm(), tokens(1, 5), Streamer()
    row = model.generate(ids, do_sample=False, streamer=streamer, **COMMON)
    assert (streamer.tokens, streamer.ended) == (row[0].tolist(), True)


def test_options_are_saved_with_the_generation_config(tmp_path):
    model, ids = tiny_nano_ebm(dtype=torch.float32), tokens(1, 5)
    plain = model.generate(ids, do_sample=False, **COMMON)
    model.generation_config.think_steps, model.generation_config.think_topk = 6, 4
    expected = model.generate(ids, do_sample=False, return_dict_in_generate=True, output_logits=True, **COMMON)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert (saved["think_steps"], saved["think_topk"]) == (6, 4)
    again = NanoEBMForRefinement.from_pretrained(tmp_path).eval()
    found = again.generate(ids, do_sample=False, return_dict_in_generate=True, output_logits=True, **COMMON)
    assert torch.equal(found.logits[0], expected.logits[0])
    assert (found.logits[0] > -torch.inf).sum() == 4
    back = again.generate(ids, do_sample=False, think_steps=2, think_topk=0, **COMMON)
    assert torch.equal(back, plain)


def test_what_cannot_be_generated_is_refused():
    model = tiny_nano_ebm()
    ids = tokens(1, 40)
    with pytest.raises(ValueError, match=r"48 positions, but the prompt has 40 tokens.*max_new_tokens=8 at most"):
        model.generate(ids, max_new_tokens=9)
    assert model.generate(ids, max_new_tokens=8, eos_token_id=None).shape == (1, 48)
    with pytest.raises(ValueError, match=r"48 positions.*shorten the prompt"):
        model.generate(tokens(1, 60), max_new_tokens=1)
    with pytest.raises(ValueError, match="think_steps must be"):
        model.generate(ids, max_new_tokens=1, think_steps=-1)
    with pytest.raises(ValueError, match="past_key_values must be a DynamicCache"):
        model.generate(ids, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ValueError, match="think_stepz"):
        model.generate(ids, max_new_tokens=1, think_stepz=3)
    model.train().activation_checkpointing_enable()
    with pytest.raises(ValueError, match=r"call model.eval"):
        model.generate(ids, max_new_tokens=2)
    published = tiny_nano_ebm(energy_type="linear", geometry="logits", use_soft_tokens="published")
    with pytest.raises(ValueError, match="pass use_cache=False"):
        published.generate(ids, max_new_tokens=2)
    assert published.generate(ids, max_new_tokens=2, use_cache=False).shape == (1, 42)
