"""Token features against sums written out, and the cache that keeps them."""

import math

import numpy as np
import pytest
import torch

from hf_elm.detection_cache import FeatureCache
from hf_elm.detection_features import LOG_PROB_FLOOR, FeatureExtractor, distribution_features
from hf_elm.model_fingerprint import model_fingerprint
from tests.hf_elm.tiny_harness import POSITIONS, gpt2, letters, monarc, nano_ebm


ROUNDING = {"atol": 2e-5, "rtol": 1e-6}  # features are float32, and up to 60 in size


@pytest.fixture(scope="module")
def tokenizer():
    return letters()


def rows(*lengths, vocab=64):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(5, vocab, (length,), generator=generator).tolist() for length in lengths]


def written_out(logits, token):
    """The four features of one token by plain sums over the vocabulary."""
    exps = [math.exp(value - max(logits)) for value in logits]
    probs = [value / sum(exps) for value in exps]
    own = math.log(probs[token])
    entropy = -sum(p * math.log(p) for p in probs)
    variance = sum(p * (math.log(p) + entropy) ** 2 for p in probs)
    return [own, math.log(1 + sum(p > probs[token] for p in probs)), entropy, math.sqrt(variance)]


def test_distribution_features_are_the_sums_written_out():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64) * 3
    targets = torch.randint(7, (2, 3), generator=generator)
    found = distribution_features(logits, targets)
    for i in range(2):
        for t in range(3):
            expected = written_out(logits[i, t].tolist(), int(targets[i, t]))
            np.testing.assert_allclose(found[i, t].numpy(), expected, atol=1e-12)


def test_a_token_without_probability_has_finite_features():
    logits = torch.tensor([[[0.0, -torch.inf, 0.0]]])
    log_prob, log_rank, entropy, std = distribution_features(logits, torch.tensor([[1]]))[0, 0].tolist()
    assert log_prob == LOG_PROB_FLOOR
    assert log_rank == pytest.approx(math.log(3))
    assert entropy == pytest.approx(math.log(2))
    assert std == pytest.approx(0, abs=1e-7)


@torch.no_grad()
def test_monarc_features_are_those_of_every_prefix_run_by_itself(tokenizer):
    """LM, energy and Z from a fresh row per prefix and candidate, none of the shared machinery for candidates."""
    model = monarc(tokenizer)
    (ids,) = rows(6)
    extractor = FeatureExtractor(model, method="exact", batch_size=3)
    found = extractor.extract([ids])[0].values
    assert extractor.columns[4:] == ("energy", "log_z_lower", "log_z_upper")
    for t in range(1, len(ids)):
        logits = model.lm(torch.tensor([ids[:t]])).logits[0, -1].double()
        others = torch.tensor([[*ids[:t], y] for y in range(64)])
        energies = model(others).energies[:, t].double()
        log_z = torch.logsumexp(logits.log_softmax(-1) - energies, 0).item()
        expected = [*written_out(logits.tolist(), ids[t]), energies[ids[t]].item(), log_z, log_z]
        np.testing.assert_allclose(found[t - 1].numpy(), expected, **ROUNDING)


def test_a_sampled_interval_whose_head_is_the_vocabulary_is_exact(tokenizer):
    model = monarc(tokenizer)
    exact = FeatureExtractor(model, method="exact").extract(rows(9))[0].values
    whole = FeatureExtractor(model, method="sampled", exact_top=64, num_samples=2).extract(rows(9))[0].values
    torch.testing.assert_close(whole, exact, **ROUNDING)
    rough = FeatureExtractor(model, method="sampled", exact_top=8, num_samples=8).extract(rows(40))[0].values
    assert rough[:, 5].mean() < rough[:, 6].mean()
    true = FeatureExtractor(model, method="exact").extract(rows(40))[0].values[:, 5]
    assert (rough[:, 5:].mean(1) - true).abs().mean() < true.std()


@pytest.mark.parametrize("make", [monarc, nano_ebm, gpt2])
def test_what_stands_beside_a_text_changes_nothing(tokenizer, make):
    model = make(tokenizer)
    texts = rows(2, 31, 7)
    extractor = FeatureExtractor(model, hidden_states=True, batch_size=3)
    together = extractor.extract(texts)
    for ids, found in zip(texts, together, strict=True):
        alone = extractor.extract([ids])[0]
        assert found.values.shape == (len(ids) - 1, len(extractor.columns))
        # float32 models round differently in batches of another width
        torch.testing.assert_close(found.values, alone.values, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.states, alone.states, atol=2e-3, rtol=2e-3)


@torch.no_grad()
def test_nano_ebm_features_are_of_both_systems(tokenizer):
    model = nano_ebm(tokenizer)
    (ids,) = rows(8)
    extractor = FeatureExtractor(model)
    found = dict(zip(extractor.columns, extractor.extract([ids])[0].values.unbind(-1), strict=True))
    out = model(torch.tensor([ids]), use_thinking=True, output_energies=True)
    after = torch.tensor(ids[1:])
    for suffix, logits in (("s1", out.s1_logits), ("s2", out.logits)):
        chosen = logits[0, :-1].double().log_softmax(-1).gather(-1, after.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(found[f"log_prob_{suffix}"].double(), chosen, **ROUNDING)
    torch.testing.assert_close(found["energy_fall"].double(), (out.energies[0] - out.energies[-1])[0, :-1], **ROUNDING)
    assert found["energy_fall"].min() >= -1e-6  # thinking descends


def test_texts_that_do_not_fit_are_refused(tokenizer):
    extractor = FeatureExtractor(gpt2(tokenizer))
    with pytest.raises(ValueError, match="text 1 has 1 tokens; features need at least 2 and at most 64"):
        extractor.extract([*rows(2), [5]])
    with pytest.raises(ValueError, match=f"has {POSITIONS + 1} tokens"):
        extractor.extract(rows(POSITIONS + 1))


class Counting(FeatureExtractor):
    """Counts the texts that it had to read."""

    texts = 0

    def extract(self, rows):
        self.texts += len(rows)
        return super().extract(rows)


def test_the_cache_reads_again_what_is_the_same_and_nothing_else(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_elm.detection_cache.TEXTS_PER_FILE", 2)
    model = monarc(tokenizer)
    texts = rows(5, 9, 7)

    def read(texts, **options):
        extractor = Counting(model, **{"method": "sampled", "num_samples": 2, "exact_top": 4} | options)
        cache = FeatureCache(tmp_path, extractor, model_fingerprint(model, tokenizer))
        return list(cache.features(texts)), extractor.texts, cache

    first, count, _ = read(texts)
    assert count == 3
    again, count, cache = read(texts)
    assert count == 0
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.values, other.values)
        assert one.states is other.states is None
    _, count, _ = read([*texts[:2], texts[0]])
    assert count == 1  # the file of the first two serves
    _, count, _ = read([texts[1], texts[0], texts[2]])
    assert count == 2  # another order is another file
    _, count, _ = read(texts, num_samples=3)
    assert count == 3
    states, count, _ = read(texts, hidden_states=True)
    assert (count, states[0].states.shape) == (3, (4, 16))
    cache.path(texts[:2]).write_bytes(b"cut off")
    repaired, count, _ = read(texts)
    assert count == 2
    assert torch.equal(repaired[1].values, first[1].values)
    with torch.no_grad():
        model.energy_parameters()[0].view(-1)[0].add_(1e-3)
    changed, count, _ = read(texts)
    assert count == 3
    assert not torch.equal(changed[0].values, first[0].values)


def test_a_fingerprint_is_of_the_model_and_not_of_its_place(tokenizer, tmp_path):
    model = gpt2(tokenizer)
    expected = model_fingerprint(model, tokenizer)
    for name in ("a", "b"):
        model.save_pretrained(tmp_path / name)
        loaded = type(model).from_pretrained(tmp_path / name)
        assert model_fingerprint(loaded, tokenizer) == expected
    assert model_fingerprint(model.bfloat16(), tokenizer)["weights_sha256"] != expected["weights_sha256"]
