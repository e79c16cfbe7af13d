"""Masks: BERT's shares, nothing special or padded, a function of the seed and the row alone."""

import math

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from hf_elm.trainers.token_masks import IGNORED, MaskRule, mask_seed
from tests.trainers.tiny_masked_lm import byte_tokenizer


SPECIAL = (256, 257, 258, 259)
CLS, SEP, MASK = 257, 258, 259


@pytest.fixture(scope="module")
def rule():
    return MaskRule.of(byte_tokenizer())


def texts(rows, seq, seed=0):
    ids = torch.randint(0, 256, (rows, seq), generator=torch.Generator().manual_seed(seed))
    ids[:, 0], ids[:, -1] = CLS, SEP
    return ids


def within(count, number, p):
    """Whether ``count`` of ``number`` draws is within 4.5 standard deviations of a share of ``p``."""
    return abs(count - number * p) <= 4.5 * math.sqrt(number * p * (1 - p))


@pytest.mark.parametrize(
    ("probability", "mask_share", "random_share"), [(0.3, 0.8, 0.1), (0.15, 0.5, 0.5), (0.4, 1, 0)]
)
def test_shares_are_those_asked_for(probability, mask_share, random_share):
    rule = MaskRule.of(byte_tokenizer(), probability=probability, mask_share=mask_share, random_share=random_share)
    ids = texts(2000, 66)
    seen, labels = rule(ids, None, mask_seed(0, 0))
    predicted = labels != IGNORED
    number = 2000 * 64
    assert within(predicted.sum(), number, probability)
    assert torch.equal(labels[predicted], ids[predicted])
    assert torch.equal(seen[~predicted], ids[~predicted])
    assert not predicted[:, [0, -1]].any()
    total = int(predicted.sum())
    masked, kept = (seen == MASK) & predicted, (seen == ids) & predicted
    changed = predicted & ~masked & ~kept
    assert within(masked.sum(), total, mask_share) if mask_share < 1 else masked.sum() == total
    assert within(changed.sum(), total, random_share * 255 / 256)  # a random token may be the true one
    if random_share:
        random_tokens = seen[changed]
        assert random_tokens.max() < 256, "no special token stands in a random place"
        counts = torch.bincount(random_tokens, minlength=256).double()
        chi_squared = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
        assert abs(chi_squared - 255) < 5 * math.sqrt(2 * 255)


def test_draws_are_independent_of_place_neighbour_and_step(rule):
    ids = texts(4000, 34)
    draws = [(rule(ids, None, mask_seed(0, step))[1] != IGNORED)[:, 1:-1].double() for step in (0, 1)]
    each = draws[0].mean(0)  # by place
    assert ((each - 0.3).abs() < 4.5 * math.sqrt(0.21 / 4000)).all()
    neighbours = (draws[0][:, 1:] * draws[0][:, :-1]).mean()
    steps = (draws[0] * draws[1]).mean()
    for share, count in ((neighbours, 4000 * 31), (steps, 4000 * 32)):
        assert abs(share - 0.09) < 4.5 * math.sqrt(0.09 * 0.91 / count) * 2  # neighbours overlap: twice the deviation


def test_equal_tokens_of_a_row_are_drawn_apart(rule):
    ids = torch.full((1, 1000), 97)
    _, labels = rule(ids, None, 1)
    assert within((labels != IGNORED).sum(), 1000, 0.3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_batch_do_not_matter(rule, side):
    rows = [texts(1, length, seed=length)[0] for length in (3, 17, 40)]
    alone = [rule(row[None], None, 5) for row in rows]
    ids = torch.full((3, 47), 256)
    mask = torch.zeros(3, 47, dtype=torch.long)
    for number, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(47 - len(row), 47)
        ids[number, place], mask[number, place] = row, 1
    seen, labels = rule(ids, mask, 5)
    assert (labels[mask == 0] == IGNORED).all()
    assert (seen[mask == 0] == 256).all()
    for number, (own_seen, own_labels) in enumerate(alone):
        assert torch.equal(seen[number][mask[number] == 1], own_seen[0])
        assert torch.equal(labels[number][mask[number] == 1], own_labels[0])


def test_a_seed_gives_the_same_mask_and_another_another(rule):
    ids = texts(4, 200)
    first, again, other = (rule(ids, None, seed) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    turned = ids.roll(1, 0)
    assert torch.equal(rule(turned, None, 3)[1], first[1].roll(1, 0)), "the row, not its place in the batch"
    changed = ids.clone()
    changed[0, 7] += 1 if ids[0, 7] < 255 else -1
    assert ((rule(changed, None, 3)[1] != IGNORED) != (first[1] != IGNORED)).any(1).tolist() == [
        True,
        False,
        False,
        False,
    ]


def test_seeds_differ_by_every_part():
    assert len({mask_seed(seed, step) for seed in range(30) for step in range(30)}) == 900
    assert 0 <= mask_seed("evaluation") < 2**63


def test_a_tokenizer_without_mask_token_is_refused():
    backend = byte_tokenizer().backend_tokenizer
    with pytest.raises(ValueError, match="no mask_token"):
        MaskRule.of(PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]"))
