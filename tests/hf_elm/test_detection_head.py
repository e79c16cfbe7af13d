"""The detector's head: weights, padding, saving, and what it can and cannot learn; AUROC and its intervals."""

import itertools

import numpy as np
import pytest
import torch

from hf_elm.detection_features import TextFeatures
from hf_elm.detection_head import CONFIG, WEIGHTS, AttentionWeightedHead, FeatureBatch, HeadConfig
from hf_elm.detection_report import HumanAndMachineTexts, measure_head
from hf_elm.detection_scores import auroc, aurocs_by_document, baseline_scores, oriented
from hf_elm.detection_training import fit_head, text_logits


COLUMNS = ("log_prob", "log_rank", "entropy")


def random_texts(count, seed=0, columns=3, states=0, lengths=(5, 13)):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(*lengths, (count,), generator=generator).tolist()
    return [
        TextFeatures(
            torch.randn(size, columns, generator=generator),
            torch.randn(size, states, generator=generator).half() if states else None,
        )
        for size in sizes
    ]


def trained_like(head):
    """A head with weights as after training: the gate is not at 0."""
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        head.standardise(torch.randn(50, len(head.config.columns)) * 2 + 1)
    return head.eval()


@pytest.mark.parametrize("states", [0, 4])
def test_padding_and_neighbours_do_not_change_a_score(states):
    torch.manual_seed(0)
    head = trained_like(AttentionWeightedHead(HeadConfig(COLUMNS, state_size=states, hidden_size=8, num_heads=3)))
    texts = [*random_texts(4, states=states), *random_texts(1, seed=1, states=states, lengths=(1, 2))]
    together = text_logits(head, texts)
    alone = torch.cat([text_logits(head, [text]) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    batch = FeatureBatch.of(texts)
    poisoned = batch.values.masked_fill(~batch.mask.unsqueeze(-1), 1e6)
    torch.testing.assert_close(head(poisoned, batch.mask, batch.states), alone, atol=1e-5, rtol=1e-5)
    weights = head.token_weights(batch.values, batch.mask, batch.states)
    torch.testing.assert_close(weights.sum(-1), torch.ones(5))
    assert (weights[~batch.mask] == 0).all()
    assert weights[0, : batch.mask[0].sum()].std() > 1e-3


def test_an_untrained_head_weighs_all_tokens_alike():
    torch.manual_seed(0)
    batch = FeatureBatch.of(random_texts(3))
    learnt = AttentionWeightedHead(HeadConfig(COLUMNS, num_heads=2)).eval()
    fixed = AttentionWeightedHead(HeadConfig(COLUMNS, num_heads=0)).eval()
    expected = batch.mask / batch.mask.sum(-1, keepdim=True)
    for head in (learnt, fixed):
        torch.testing.assert_close(head.token_weights(batch.values, batch.mask), expected)
    fixed.value.load_state_dict(learnt.value.state_dict())
    with torch.no_grad():
        fixed.output.bias.copy_(learnt.output.bias)
        fixed.output.weight.copy_(learnt.output.weight.view(2, -1).sum(0, keepdim=True))
    torch.testing.assert_close(learnt(batch.values, batch.mask), fixed(batch.values, batch.mask))


def test_saved_and_loaded_heads_are_the_same(tmp_path):
    head = trained_like(AttentionWeightedHead(HeadConfig(COLUMNS, state_size=2, hidden_size=5)))
    texts = random_texts(3, states=2)
    head.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, WEIGHTS]
    loaded = AttentionWeightedHead.load(tmp_path)
    assert loaded.config == head.config
    assert torch.equal(text_logits(loaded, texts), text_logits(head, texts))
    (tmp_path / WEIGHTS).write_bytes(b"cut off")
    with pytest.raises(ValueError, match="is damaged"):
        AttentionWeightedHead.load(tmp_path)
    (tmp_path / CONFIG).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no head\.json; train one"):
        AttentionWeightedHead.load(tmp_path)


def planted(count, seed):
    """Machine texts differ at one token in eight, which column 1 marks; on average over tokens hardly at all."""
    texts = random_texts(count, seed, lengths=(30, 41))
    labels = torch.arange(count) % 2
    for text, label in zip(texts, labels, strict=True):
        marked = torch.arange(len(text.values)) % 8 == 0
        text.values[:, 1] = marked.float()
        text.values[marked, 0] *= 0.5
        text.values[marked, 0] += 0.5 * (2 * label - 1)
    return texts, labels


def fitted(train, labels, validation, validation_labels, **fields):
    config = HeadConfig(COLUMNS, **{"hidden_size": 16} | fields)
    return fit_head(train, labels, validation, validation_labels, config, epochs=40, progress=False)


def test_the_head_finds_the_tokens_that_tell():
    train, validation, test = planted(240, 1), planted(80, 2), planted(200, 3)
    head, result = fitted(*train, *validation)
    reached = auroc(text_logits(head, test[0]).numpy(), test[1].numpy())
    uniform, _ = fitted(*train, *validation, num_heads=0)
    assert reached > 0.9
    batch = FeatureBatch.of(test[0])
    weights = head.token_weights(batch.values, batch.mask)
    marked = batch.values[..., 1] == 1
    assert weights[marked].sum() / len(test[0]) > 0.3  # of 1 in all; one in eight by number
    mean = auroc(np.array([float(text.values[:, 0].mean()) for text in test[0]]), test[1].numpy())
    assert reached > mean + 0.05
    assert result.validation_loss[result.best_epoch] == min(result.validation_loss)
    assert auroc(text_logits(uniform, test[0]).numpy(), test[1].numpy()) > 0.5


def test_labels_that_mean_nothing_teach_nothing():
    found = []
    for seed in range(3):
        train, validation, test = (random_texts(200, 10 * seed + i) for i in range(3))
        labels = torch.randint(2, (200,), generator=torch.Generator().manual_seed(seed))
        head, _ = fitted(train, labels, validation, labels.flip(0))
        found.append(auroc(text_logits(head, test).numpy(), labels.numpy()))
    assert abs(np.mean(found) - 0.5) < 0.08  # the mean's standard error is .024


def test_one_seed_gives_one_head_and_leaves_the_global_stream_alone():
    train, validation = planted(20, 1), planted(10, 2)
    state = torch.get_rng_state()
    first, second = (fitted(*train, *validation)[0] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    with pytest.raises(ValueError, match="human and machine texts"):
        fitted(train[0], torch.zeros(20), *validation)


# ------------------------------------------------------------------------------------------------ AUROC


def by_pairs(scores, labels, weights):
    total = won = 0.0
    for i, j in itertools.product(range(len(scores)), repeat=2):
        if labels[i] and not labels[j]:
            total += weights[i] * weights[j]
            won += weights[i] * weights[j] * ((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
    return won / total


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_auroc_is_the_share_of_pairs_in_order(levels):
    generator = np.random.default_rng(levels)
    scores = generator.integers(levels, size=37)
    labels = generator.integers(2, size=37)
    weights = generator.integers(0, 4, size=37)
    assert auroc(scores, labels, weights) == pytest.approx(by_pairs(scores, labels, weights), abs=1e-12)
    assert auroc(scores, labels) == pytest.approx(by_pairs(scores, labels, np.ones(37)), abs=1e-12)
    assert auroc(-scores, labels) == pytest.approx(1 - auroc(scores, labels), abs=1e-12)


def test_auroc_needs_both_kinds():
    with pytest.raises(ValueError, match="texts of both kinds"):
        auroc(np.arange(3.0), np.ones(3))


def test_intervals_resample_documents_and_not_texts():
    """Ten copies of every text tell no more than one: the interval stays, where that of texts would shrink by 3."""
    generator = np.random.default_rng(0)
    labels = np.tile([0, 1], 30)
    scores = labels + generator.normal(size=60) * 2
    documents = [str(i // 2) for i in range(60)]
    once = aurocs_by_document({"head": scores, "other": -scores}, labels, documents)
    copies = aurocs_by_document(
        {"head": np.repeat(scores, 10), "other": np.repeat(-scores, 10)},
        np.repeat(labels, 10),
        list(np.repeat(documents, 10)),
    )
    assert copies["head"].interval == pytest.approx(once["head"].interval)
    low, high = once["head"].interval
    assert low < once["head"].value < high
    assert 0.1 < high - low < 0.5
    assert once["other"].value == pytest.approx(1 - once["head"].value)
    assert once["other"].difference == pytest.approx(2 * once["head"].value - 1)
    apart = aurocs_by_document({"head": np.repeat(scores, 10)}, np.repeat(labels, 10), [str(i) for i in range(600)])
    assert apart["head"].interval[1] - apart["head"].interval[0] < 0.6 * (high - low)


def test_a_score_that_equals_the_head_differs_by_nothing():
    labels = np.tile([0, 1], 10)
    scores = np.random.default_rng(1).normal(size=20)
    same = aurocs_by_document({"head": scores, "same": scores}, labels, [str(i // 4) for i in range(20)])["same"]
    assert (same.difference, same.difference_interval) == (0.0, (0.0, 0.0))


def test_baselines_are_what_their_names_say():
    columns = ("log_prob", "log_rank", "entropy", "log_prob_std", "energy", "log_z_lower", "log_z_upper")
    values = torch.rand(11, 7, generator=torch.Generator().manual_seed(0)) + 0.1
    found = {name: each.item() for name, each in baseline_scores([TextFeatures(values)], columns).items()}
    v = values.double().numpy()
    gain = (-v[:, 4] - (v[:, 5] + v[:, 6]) / 2).mean()
    expected = {
        "mean perplexity": v[:, 0].mean(),
        "mean log rank": v[:, 1].mean(),
        "curvature": (v[:, 0] + v[:, 2]).sum() / np.sqrt((v[:, 3] ** 2).sum()),
        "perplexity/entropy": v[:, 0].sum() / v[:, 2].sum(),
        "mean energy": v[:, 4].mean(),
        "mean log p_ELM/p_LM": gain,
        "mean ELM perplexity": v[:, 0].mean() + gain,
    }
    assert found == pytest.approx(expected, abs=1e-12)
    two = ("log_prob_s1", "log_prob_s2", "energy_s1", "energy_fall")
    assert "mean log p_s2/p_s1" in baseline_scores([TextFeatures(values[:, :4])], two)


def test_a_baseline_has_the_direction_that_is_better_for_it():
    texts = [TextFeatures(torch.full((4, 3), float(i % 2))) for i in range(8)]
    names = [str(i // 2) for i in range(8)]
    assert oriented(np.array([0, 1]), np.array([1, 0])) == -1.0
    for labels in (np.arange(8) % 2, 1 - np.arange(8) % 2):
        found = measure_head(
            AttentionWeightedHead(HeadConfig(COLUMNS)), "lm", HumanAndMachineTexts(texts, labels, names)
        )
        assert found.aurocs["mean perplexity"].value == 1.0
        assert found.strongest_baseline() == "mean perplexity"


def test_texts_are_left_out_by_pairs_and_joined_by_generator():
    one, two, three = random_texts(3)
    pairs = HumanAndMachineTexts.of([one, two], [three, None], ["a", "b"])
    assert [id(text) for text in pairs.features] == [id(one), id(three)]
    assert (pairs.labels.tolist(), pairs.documents) == ([0, 1], ["a", "a"])
    both = HumanAndMachineTexts.joined([pairs, pairs])
    assert (both.labels.tolist(), len(both.features), both.documents) == ([0, 1, 0, 1], 4, ["a"] * 4)
