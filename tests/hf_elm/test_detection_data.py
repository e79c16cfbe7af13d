"""Passages, machine texts and the split: what the detector's documents are made of."""

import itertools

import pytest
import torch

from hf_elm import detection_data
from hf_elm.detection_data import MachineTexts, Passage, Sampling, cut_passages, drawn_tokens, split_documents
from hf_elm.detection_texts import TextCodec
from hf_elm.trainers.tokenization import build_tokenizer
from tests.hf_elm import tiny_harness as tiny


CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .;:"  # whatever a model of them draws is text


@pytest.fixture(scope="module")
def codec():
    return TextCodec(build_tokenizer("char", [CHARACTERS]))


@pytest.fixture(scope="module")
def model(codec):
    return tiny.monarc(codec.tokenizer, 0.1, torch.float32)


def numbered(documents, length=400):
    """Texts in which every place of every document reads differently."""
    return ["".join(f"{d}.{i:03d};" for i in range(length // 6)) for d in range(documents)]


def cut(texts, codec, **options):
    return cut_passages(texts, codec, **{"document_tokens": 20, "prompt_tokens": 10, "seed": 1} | options)


def test_a_human_text_is_what_follows_the_prompt_and_nothing_overlaps(codec):
    texts = numbered(4)
    passages = cut(texts, codec)
    taken = {}
    for passage in passages:
        whole = codec.decode(list(passage.prompt)) + passage.human
        (text,) = [text for text in texts if whole in text]
        assert len(codec.encode(passage.human)) == 20
        start = text.index(whole)
        taken.setdefault(passage.document, []).append((text, start, start + len(whole)))
    assert len(taken) == 4
    for places in taken.values():
        assert len({text for text, _, _ in places}) == 1
        ends = sorted((start, end) for _, start, end in places)
        assert all(end <= following for (_, end), (following, _) in itertools.pairwise(ends))
    size = 10 + drawn_tokens(20)
    assert len(passages) == 4 * (len(texts[0]) // size)


def test_documents_and_passages_are_bounded_and_copies_are_one_document(codec):
    texts = numbered(6)
    assert cut(texts, codec) == cut(texts[::-1] + texts, codec)
    few = cut(texts, codec, documents=3, passages=2)
    assert len({each.document for each in few}) == 3
    assert len(few) == 6
    assert {each.document for each in cut(texts, codec, seed=2)} == {each.document for each in cut(texts, codec)}
    assert cut(texts, codec, seed=2) != cut(texts, codec)
    with pytest.raises(ValueError, match="2 documents of 3 are long enough"):
        cut([*texts[:2], "short"], codec)


def test_broken_and_unknown_characters_are_left_out(codec):
    assert codec.document(codec.encode("abc def"), 5) == "abc d"
    assert codec.document(codec.encode("abc"), 5) is None
    assert codec.unknown is not None
    assert codec.document(codec.encode("ab\u65e5cdef"), 5) is None
    assert codec.known("a\u65e5b") == codec.encode("ab")
    bytes_ = TextCodec(build_tokenizer("byte"))
    ids = bytes_.encode("a\u65e5b")
    assert bytes_.document(ids, 5) == "a\u65e5b"
    assert bytes_.document(ids, 3) is None  # ends within a character
    assert bytes_.document(ids[2:], 2) is None


def test_pieces_cover_a_text(codec):
    ids = list(range(10, 33))
    assert codec.pieces(ids, 10) == [ids[:10], ids[10:20], ids[13:]]
    assert codec.pieces(ids[:20], 10) == [ids[:10], ids[10:20]]
    assert codec.pieces(ids[:7], 10) == [ids[:7]]
    assert codec.pieces(ids[:1], 10) == []


def test_no_document_is_on_two_sides():
    passages = [Passage(str(d), (1,), str(i)) for d in range(23) for i in range(1 + d % 5)]
    sides = split_documents(passages)
    assert sorted(i for side in sides.values() for i in side) == list(range(len(passages)))
    names = [{passages[i].document for i in side} for side in sides.values()]
    assert all(not one & other for one, other in itertools.combinations(names, 2))
    assert len(sides["test"]) / len(passages) == pytest.approx(0.35, abs=0.1)
    assert split_documents(passages, seed=1) != sides
    three = split_documents([Passage(str(d), (1,), "") for d in range(3)])
    assert [len(side) for side in three.values()] == [1, 1, 1]
    with pytest.raises(ValueError, match="2 documents cannot be split"):
        split_documents(passages[:3])


@pytest.mark.parametrize("generator", ["lm", "elm"])
def test_machine_texts_continue_where_they_were_interrupted(generator, codec, model, tmp_path, monkeypatch):
    monkeypatch.setattr(detection_data, "PASSAGES_PER_BATCH", 2)
    passages = cut(numbered(4), codec, passages=2)[:7]

    def writer(folder):
        return MachineTexts(folder, model, codec, {"weights": "a"}, 20, Sampling(generator))

    expected = writer(tmp_path / "whole").texts(passages)
    assert len(expected) == 7
    assert len(set(expected)) == 7
    assert all(len(codec.encode(text)) == 20 for text in expected)

    def interrupt(count):
        if count:
            raise KeyboardInterrupt

    broken = writer(tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        broken.texts(passages, interrupt)
    with open(broken.path(passages), "ab") as file:
        file.write(b'{"text": "half a li')  # killed while writing
    counts = []
    assert broken.texts(passages, counts.append) == expected
    assert counts == [2, 2, 2, 1]
    monkeypatch.setattr(model, "generate", None)
    assert writer(tmp_path / "broken").texts(passages) == expected


def test_another_model_or_sampling_is_another_file(codec, model, tmp_path):
    passages = cut(numbered(3), codec)
    paths = {
        MachineTexts(tmp_path, model, codec, {"weights": weights}, tokens, sampling).path(passages)
        for weights in "ab"
        for tokens in (20, 21)
        for sampling in (Sampling(), Sampling("elm"), Sampling(temperature=0.5), Sampling(seed=1))
    }
    assert len(paths) == 16
    with pytest.raises(ValueError, match="do not fit into the model's 64 positions"):
        MachineTexts(None, model, codec, {}, 60).texts(passages)


@torch.no_grad()
def test_the_lm_s_texts_follow_its_distribution(codec, model):
    """First tokens after one prompt against the LM's own probabilities, nothing cut off, no special tokens."""
    prompt = tuple(codec.encode("abcd"))
    rows = MachineTexts(None, model, codec, {}, 2)._generate([prompt] * 3000, "a")
    logits = model.lm(torch.tensor([prompt])).logits[0, -1]
    logits[codec.specials] = -torch.inf
    expected = logits.softmax(-1)
    found = torch.bincount(torch.tensor([row[0] for row in rows]), minlength=len(expected)) / 3000
    assert found[codec.specials].sum() == 0
    assert (found - expected).abs().sum() / 2 < 0.07  # 40 cells of 3000 draws: about .04


def test_names_of_generators():
    for name in ("lm", "elm", "lm@0.8", "elm@1/0.9", "lm@0.5/0.25"):
        assert Sampling.parse(name).name == name
    assert Sampling.parse(" lm", temperature=0.7, seed=3) == Sampling("lm", 0.7, seed=3)
    assert Sampling.parse("lm@0.8", temperature=0.7).temperature == 0.8
    for wrong in ("gpt", "lm@", "lm@0", "lm@1/1.5", "lm@1..2", ""):
        with pytest.raises(ValueError, match="must be lm or elm"):
            Sampling.parse(wrong)


def test_a_plain_language_model_has_one_generator(codec):
    plain = tiny.gpt2(codec.tokenizer)
    assert "num_candidates" not in Sampling().options(plain)
    with pytest.raises(ValueError, match='generator must be lm for this model, got "elm"'):
        Sampling("elm").options(plain)
    thinker = tiny.nano_ebm(codec.tokenizer, torch.float32)
    assert [Sampling(name).options(thinker)["use_thinking"] for name in ("lm", "elm")] == [False, True]
