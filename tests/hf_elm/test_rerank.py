"""Reranking of n-best lists: likelihoods against sums over the whole vocabulary, orders, intervals, measures, lists from files."""

import json
import math
import random

import pytest
import torch

from hf_elm.continuation_scores import EnergyScorer
from hf_elm.document_totals import ratio_estimate
from hf_elm.nbest_lists import NBestList, list_of, read_lists
from hf_elm.noisy_lines import ALIKE, CANDIDATES, channel_score, noisy_lines
from hf_elm.rerank_run import rerank_lists
from hf_elm.reranking import RankingRule, ScoredCandidate, first_pass_order, open_swaps, reranked
from hf_elm.reranking_measures import FIRST_PASS, ORACLE, RANDOM, edits, measure
from hf_elm.text_scores import TextScore, TextScorer, scorer_by
from hf_elm.trainers.tokenization import build_tokenizer
from tests.hf_elm import tiny_harness as tiny


LETTERS = tiny.letters()
CONTEXT, TEXTS = "Mr Fox ", ["sits.", "sits on it", "sitt."]  # letters a to e are not in the vocabulary


@pytest.fixture(scope="module")
def monarc():
    return tiny.monarc(LETTERS)


def next_token_log_probs(model, ids):
    """log p_LM and log p_ELM of every token after ``ids``, ``(vocab,)``: each one put in the last place, Z their sum."""
    vocab = model.get_input_embeddings().weight.shape[0]
    rows = torch.tensor([[*ids, token] for token in range(vocab)])
    with torch.no_grad():
        lm = model.lm(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        energies = model.score_candidates(rows, rows.unsqueeze(1)).token_energies[:, -1].double()
    return lm, (lm - energies).log_softmax(-1), energies


def brute_force(model, tokenizer, context, text):
    ids = tokenizer(context)["input_ids"] or [tokenizer.eos_token_id]
    sums = {"lm": 0.0, "elm": 0.0, "energy": 0.0}
    own = tokenizer(text)["input_ids"]
    for token in own:
        for name, values in zip(sums, next_token_log_probs(model, ids), strict=True):
            sums[name] += values[token].item()
        ids = [*ids, token]
    return sums | {"energy": sums["energy"] / len(own)}


@pytest.mark.parametrize("context", [CONTEXT, ""])
def test_scores_are_sums_over_the_whole_vocabulary(monarc, context):
    expected = [brute_force(monarc, LETTERS, context, text) for text in TEXTS]
    found = TextScorer(EnergyScorer(monarc), LETTERS).scores([(context, TEXTS)])[0]
    for want, score in zip(expected, found, strict=True):
        assert score.log_probs["lm"] == pytest.approx(want["lm"], abs=1e-9)
        assert score.log_probs["elm"] == pytest.approx(want["elm"], abs=1e-9)
        assert score.energy == pytest.approx(want["energy"], abs=1e-9)
    assert len({round(each["elm"] - each["lm"], 3) for each in expected}) == 3  # the energy says something of its own


def test_the_cheap_scorers_know_the_same(monarc):
    full = TextScorer(EnergyScorer(monarc), LETTERS).scores([(CONTEXT, TEXTS)])[0]
    for by in ("lm", "energy"):
        scorer, column = scorer_by(monarc, by)
        assert column == by
        assert not isinstance(scorer, EnergyScorer)
        for own, score in zip(full, TextScorer(scorer, LETTERS).scores([(CONTEXT, TEXTS)])[0], strict=True):
            assert score.log_probs == {"lm": pytest.approx(own.log_probs["lm"], abs=1e-9)}
            assert score.energy == (pytest.approx(own.energy, abs=1e-9) if by == "energy" else None)


def test_batches_groups_and_long_texts_do_not_change_scores(monarc):
    long = "on in on in on it goes ".replace("e", "o") * 4  # longer than the model's positions
    groups = [(CONTEXT, TEXTS), ("", ["x", "yy"]), (long, TEXTS), ("x", [long])]
    alone = [TextScorer(EnergyScorer(monarc, 1), LETTERS).scores([group])[0] for group in groups]
    together = TextScorer(EnergyScorer(monarc, 5), LETTERS).scores(groups)
    for one, other in zip(alone, together, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.num_tokens == b.num_tokens
            assert a.log_probs == pytest.approx(b.log_probs, abs=1e-9)
    assert together[3][0].num_tokens == len(long)


@pytest.mark.parametrize("window", [9, 11, None])
def test_a_context_is_cut_alike_for_all_texts_of_a_list(monarc, window):
    context = "on in on in on it goes ".replace("e", "o") * 3
    found = TextScorer(EnergyScorer(monarc), LETTERS, window=window).scores([(context, TEXTS)])[0]
    longest = max(map(len, TEXTS))  # a token is a character
    room = (window or tiny.POSITIONS) - longest
    start = LETTERS(context)["input_ids"][-room:] if room >= 1 else None
    for text, score in zip(TEXTS, found, strict=True):
        assert score.num_tokens == len(text)
        if start is not None:
            whole = EnergyScorer(monarc).scores([(start, LETTERS(text)["input_ids"])])
            assert score.log_probs["elm"] == pytest.approx(next(whole).total("elm"), abs=1e-9)
    with pytest.raises(ValueError, match="window must be at least 2 tokens, got 1"):
        TextScorer(EnergyScorer(monarc), LETTERS, window=1)


def test_all_texts_of_a_list_are_scored_given_the_same_tokens():
    text = "the theory then there their this that those thing think " * 30
    tokenizer = build_tokenizer("bpe", [text], vocab_size=290)
    scorer = TextScorer(type("Any", (), {"positions": None})(), tokenizer)
    for context in ("the th", "then ", "those thin", "a"):
        texts = ["eory", "ere is", "ink", " think"]
        pairs = scorer.pairs(context, texts)
        assert len({tuple(before) for before, _ in pairs}) == 1
        for (before, own), each in zip(pairs, texts, strict=True):
            whole = tokenizer(context + each)["input_ids"]
            prefix = [] if before != [tokenizer.eos_token_id] else before
            assert before + own == [*prefix, *whole]
            assert own
    assert scorer.pairs("", ["the"])[0][0] == [tokenizer.eos_token_id]


def test_the_suffix_is_scored_and_unknown_characters_are_refused(monarc):
    plain, ended = (
        TextScorer(EnergyScorer(monarc), LETTERS, suffix).scores([("x", ["y"])])[0][0] for suffix in ("", ".")
    )
    whole = TextScorer(EnergyScorer(monarc), LETTERS).scores([("x", ["y."])])[0][0]
    assert ended.log_probs == whole.log_probs
    assert ended.num_tokens == plain.num_tokens + 1
    with pytest.raises(ValueError, match="vocabulary lacks: 'é'"):
        TextScorer(EnergyScorer(monarc), LETTERS).scores([("x", ["é"])])


def test_names_that_a_model_has_nothing_for_are_refused(monarc):
    with pytest.raises(ValueError, match="by must be one of elm, energy, lm for a MonArc model"):
        scorer_by(monarc, "s2")
    with pytest.raises(ValueError, match='by must be one of lm for a plain language model, got "energy"'):
        scorer_by(tiny.gpt2(LETTERS), "energy")
    nano = tiny.nano_ebm(LETTERS)
    assert [scorer_by(nano, by)[1] for by in (None, "s1", "s2", "lm", "elm")] == ["s2", "s1", "s2", "s1", "s2"]


# ------------------------------------------------------------------------------------------------------------- orders


def candidates(rng, count=9, ties=False):
    values = [-1.0, -2.0] if ties else [rng.uniform(-9, 0) for _ in range(count)]
    return [
        ScoredCandidate(
            "ab" * (i + 1),
            i,
            TextScore({"lm": rng.choice(values), "elm": rng.choice(values)}, i + 1, rng.uniform(-1, 1)),
            rng.choice(values),
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("weight", [0.0, 0.2, 0.5, 0.8])
def test_weights_are_log_linear_combinations(weight):
    found = reranked(candidates(random.Random(0)), RankingRule("elm", weight))
    scale = weight / (1 - weight)
    values = [each.first_pass + scale * each.score.log_probs["elm"] for each in found]
    assert values == sorted(values, reverse=True)
    if weight == 0:
        assert found == first_pass_order(candidates(random.Random(0)))


def test_lengths_and_energies():
    by_tokens = reranked(candidates(random.Random(1)), RankingRule("lm", normalize="tokens"))
    values = [each.score.log_probs["lm"] / each.score.num_tokens for each in by_tokens]
    assert values == sorted(values, reverse=True)
    by_bytes = reranked(candidates(random.Random(1)), RankingRule("lm", normalize="bytes"))
    assert by_bytes == by_tokens  # two bytes per token here
    energies = [each.score.energy for each in reranked(candidates(random.Random(1)), RankingRule("energy"))]
    assert energies == sorted(energies)


def test_ties_keep_the_order_of_the_first_pass():
    rng = random.Random(2)
    for _ in range(20):
        mixed = candidates(rng, ties=True)
        found = reranked(rng.sample(mixed, len(mixed)), RankingRule("elm"))
        keys = [(-each.score.log_probs["elm"], -each.first_pass, each.place) for each in found]
        assert keys == sorted(keys)


def test_rules_out_of_range():
    with pytest.raises(ValueError, match=r"weight must be in \[0, 1\]"):
        RankingRule("elm", 1.5)
    with pytest.raises(ValueError, match="normalize must be one of none, tokens, bytes"):
        RankingRule("elm", normalize="words")
    without = [ScoredCandidate("a", 0, TextScore({"lm": 0.0}, 1))]
    with pytest.raises(ValueError, match="needs a score of the first pass"):
        reranked(without, RankingRule("lm", 0.5))


def test_open_swaps_are_the_pairs_whose_intervals_overlap():
    rng = random.Random(3)
    for weight in (1.0, 0.5):
        each = []
        for i in range(8):
            middle, half = rng.uniform(-5, 0), rng.uniform(0, 0.8)
            ends = {"lm": 0.0, "elm": middle, "elm_lower": middle - half, "elm_upper": middle + half}
            each.append(ScoredCandidate("t", i, TextScore(ends, 1), rng.uniform(-1, 0)))
        rule = RankingRule("elm", weight)
        ordered = reranked(each, rule)
        ends = [
            [weight * c.score.log_probs[f"elm_{e}"] + (1 - weight) * c.first_pass for e in ("lower", "upper")]
            for c in ordered
        ]
        expected = [(i, j) for i in range(8) for j in range(i + 1, 8) if ends[j][1] > ends[i][0]]
        assert 0 < len(expected) < 28
        assert open_swaps(ordered, rule) == (len(expected), any(i == 0 for i, _ in expected))
    exact = reranked(candidates(rng), RankingRule("elm"))
    assert open_swaps(exact, RankingRule("elm")) == (0, False)


def test_sampled_intervals_are_written_and_enclose_the_exact_score(monarc):
    exact = TextScorer(EnergyScorer(monarc, method="exact"), LETTERS)
    sampled = TextScorer(EnergyScorer(monarc, method="sampled", exact_top=40, num_samples=64), LETTERS)
    nbest = NBestList("here", 1, CONTEXT, TEXTS, [0.0, 0.0, 0.0], label=0)
    (row,), (sure,) = (rerank_lists([nbest], texts, RankingRule("elm")) for texts in (sampled, exact))
    assert "open_swaps" in row
    assert "open_swaps" not in sure
    truth = {each["text"]: each["elm"] for each in sure["candidates"]}
    for each in row["candidates"]:
        assert each["elm_lower"] <= each["elm"] <= each["elm_upper"]
        assert each["elm"] == pytest.approx(truth[each["text"]], abs=0.05)  # 24 of 64 tokens are sampled
        assert each["score"] == each["elm"]


# ----------------------------------------------------------------------------------------------------------- measures


def edits_by_recursion(a, b):
    if not a or not b:
        return len(a) + len(b)
    same = edits_by_recursion(a[1:], b[1:]) + (a[0] != b[0])
    return min(same, edits_by_recursion(a[1:], b) + 1, edits_by_recursion(a, b[1:]) + 1)


def test_edits_equal_the_definition():
    rng = random.Random(4)
    for _ in range(60):
        a, b = ("".join(rng.choice("ab") for _ in range(rng.randint(0, 5))) for _ in range(2))
        assert edits(a, b) == edits_by_recursion(a, b) == edits(b, a)
    assert edits(["one", "two", "three"], ["one", "three"]) == 1


def row(order, lm, first=None, **judged):
    each = [{"text": t, "place": i, "num_tokens": 1, "lm": lm[i]} for i, t in enumerate(order)]
    for i, own in enumerate(each):
        own |= {} if first is None else {"first_pass": first[i]}
    return {"candidates": each, **judged}


def test_measures_before_and_after():
    rows = [
        row(["a b c", "a b", "x"], [-3, -1, -2], reference="a b"),
        row(["p q", "p r"], [-1, -2], [-5, -4], reference="p q"),  # the first pass ranks the second one first
        row(["k", "l", "m", "n"], [-4, -3, -2, -1], label=2),
        {"candidates": [], "reference": None},
    ]
    found = measure(rows, {"lm": RankingRule("lm")})
    assert (found.num_lists, found.num_references) == (3, 2)
    value = {name: {m: e.value for m, e in each.items()} for name, each in found.orders.items()}
    assert [value[name]["accuracy"] for name in (FIRST_PASS, "lm", ORACLE)] == pytest.approx([0, 2 / 3, 1])
    assert value[RANDOM]["accuracy"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 4) / 3)
    assert value[FIRST_PASS]["word_error_rate"] == pytest.approx((1 + 1) / 4)
    assert value["lm"]["word_error_rate"] == value[ORACLE]["word_error_rate"] == 0
    assert value[RANDOM]["word_error_rate"] == pytest.approx(((1 + 0 + 2) / 3 + 1 / 2) / 4)
    assert value[FIRST_PASS]["character_error_rate"] == pytest.approx((2 + 1) / 6)
    paired = ratio_estimate(torch.tensor([1.0, 1.0, 0.0]), torch.ones(3))  # first places right after, none before
    assert found.differences["lm"]["accuracy"] == pytest.approx(paired)
    assert measure([{"candidates": []}], {}) is None
    assert "0.667" in "".join(str(cell) for column in found.table().columns for cell in column.cells)


# -------------------------------------------------------------------------------------------------------------- lists


def test_lists_are_read(tmp_path):
    lines = [
        {
            "id": "u",
            "context": "c",
            "candidates": [{"text": "a", "score": 1}, {"text": "b", "score": -2.5}],
            "label": 1,
        },
        {"candidates": ["x", "y"], "reference": "z", "speaker": "f1"},
    ]
    path = tmp_path / "lists.jsonl"
    path.write_text("\n\n".join(map(json.dumps, lines)), encoding="utf-8")
    first, second = read_lists(path)
    assert (first.id, first.context, first.texts, first.first_pass, first.label) == (
        "u",
        "c",
        ["a", "b"],
        [1.0, -2.5],
        1,
    )
    assert (second.id, second.context, second.texts, second.first_pass) == (3, "", ["x", "y"], None)
    assert second.reference == "z"
    assert second.origin.endswith("lists.jsonl:3")
    assert NBestList("", 1, "", ["a"]).is_judged is False


BAD = {
    "not json": "is not JSON",
    "[1]": "must be a JSON object",
    '{"candidates": []}': "candidates must be a list of at least one text",
    '{"candidates": ["a", ""]}': "candidate 1 must be a text",
    '{"candidates": ["a", {"score": 1}]}': "candidate 1 must be a text",
    '{"candidates": [{"text": "a", "score": "high"}]}': "score of candidate 0 must be a number",
    '{"candidates": [{"text": "a", "score": NaN}]}': "score of candidate 0 must be a number",
    '{"candidates": [{"text": "a", "score": 1}, "b"]}': "candidate 1 has no score",
    '{"candidates": ["a"], "label": 1}': "label must be a place in candidates, 0 to 0",
    '{"candidates": ["a"], "label": true}': "label must be a place",
    '{"candidates": ["a"], "reference": 3}': "reference must be a text",
    '{"candidates": ["a"], "reference": "a", "label": 0}': "both say what is right",
    '{"candidates": ["a"], "context": null}': "context must be a text",
    '{"candidates": ["a"], "id": 1.5}': "id must be a text or a whole number",
    '{"candidates": ["a"], "referense": "a"}': 'is "reference" meant?',
}


@pytest.mark.parametrize("line", BAD)
def test_a_malformed_line_is_named(tmp_path, line):
    path = tmp_path / "lists.jsonl"
    path.write_text(f'{{"candidates": ["fine"]}}\n{line}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"lists\.jsonl:2") as error:
        read_lists(path)
    assert BAD[line] in str(error.value)


def test_files_that_hold_no_lists(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_lists(tmp_path / "none.jsonl")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    with pytest.raises(ValueError, match="holds no list"):
        read_lists(empty)
    empty.write_text('{"id": 1, "candidates": ["a"]}\n{"id": 1, "candidates": ["a"]}')
    with pytest.raises(ValueError, match=r"id 1 is that of .*:1 too"):
        read_lists(empty)
    empty.write_bytes(b'{"candidates": ["\xff"]}')
    with pytest.raises(ValueError, match="not UTF-8"):
        read_lists(empty)


def test_library_lines_are_seen_through_the_channel():
    lists = noisy_lines(0)
    assert len(lists) > 50
    assert [each.id for each in lists] == [each.id for each in noisy_lines(0)] != [each.id for each in noisy_lines(1)]
    for nbest in lists[:40]:
        list_of(vars(nbest) | {"candidates": nbest.texts, "origin": 0}, "here", 1)
        assert len(set(nbest.texts)) == len(nbest.texts) == CANDIDATES
        assert nbest.texts.count(nbest.reference) == 1
        assert all(edits(text, nbest.reference) == 1 for text in nbest.texts if text != nbest.reference)
    total = sum(math.exp(channel_score("ab", a + b)) for a in "a" + ALIKE["a"] for b in "b" + ALIKE["b"])
    assert total == pytest.approx(1)  # a probability over observations
