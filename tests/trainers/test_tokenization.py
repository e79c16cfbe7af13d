"""Tokenizers: exact round trips, also after saving, and corpora as ids that end in eos."""

import textwrap
import typing

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_elm.trainers.character_coverage import unknown_characters
from hf_elm.trainers.tokenization import EOS, PAD, UNK, build_tokenizer, tokenize_corpus


TEXTS = [open(module.__file__, encoding="utf-8").read() for module in (textwrap, typing)]  # noqa: SIM115
AWKWARD = "  two spaces\tand\r\na \x00 n\u0303\u00f1 \u4f60\u597d \U0001f642 don 't  <|endoftext|><|pad|> .\n\n"
KINDS = {"byte": None, "char": None, "bpe": 400}


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: build_tokenizer(kind, [*TEXTS, AWKWARD], size) for kind, size in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_texts_come_back_exactly_also_after_saving(tokenizers, kind, tmp_path):
    tokenizer = tokenizers[kind]
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    assert not list(tmp_path.glob("*.py")), "no remote code"
    assert len(loaded) == len(tokenizer)
    assert (loaded.eos_token, loaded.pad_token) == (EOS, PAD)
    assert loaded.eos_token_id != loaded.pad_token_id
    for text in [*TEXTS, AWKWARD, ""]:
        ids = tokenizer(text)["input_ids"]
        assert loaded(text)["input_ids"] == ids
        assert tokenizer.decode(ids) == loaded.decode(ids) == loaded.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("kind", ["byte", "bpe"])
@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_unicode_comes_back(tokenizers, kind, text):
    ids = tokenizers[kind](text)["input_ids"]
    assert tokenizers[kind].decode(ids) == text
    assert max(ids, default=0) < len(tokenizers[kind])


def test_byte_ids_are_the_bytes():
    tokenizer = build_tokenizer("byte")
    assert tokenizer(AWKWARD)["input_ids"] == [*AWKWARD.encode()]
    assert (len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id) == (258, 256, 257)


def test_char_ids_are_characters_and_strange_ones_are_named(tokenizers):
    tokenizer = tokenizers["char"]
    assert len(tokenizer) == len(set("".join(TEXTS) + AWKWARD)) + 3
    assert tokenizer.convert_ids_to_tokens(tokenizer("def ")["input_ids"]) == ["d", "e", "f", " "]
    assert tokenizer("a\u2603b")["input_ids"][1] == tokenizer.unk_token_id
    assert tokenizer.unk_token == UNK
    assert unknown_characters(tokenizer, "b\u2603a\u2620\u2603") == ["\u2603", "\u2620"]
    assert unknown_characters(tokenizers["byte"], "\u2603") == unknown_characters(tokenizer, "") == []


def test_char_vocabulary_keeps_the_most_frequent():
    tokenizer = build_tokenizer("char", ["aaabbc", "aad"], vocab_size=5)
    assert [*tokenizer.get_vocab()] != []
    assert {*tokenizer.get_vocab()} == {"a", "b", UNK, EOS, PAD}


def test_bpe_learns_the_corpus_and_learns_it_twice_the_same(tokenizers):
    assert len(tokenizers["bpe"]) == 400
    assert build_tokenizer("bpe", [*TEXTS, AWKWARD], 400).get_vocab() == tokenizers["bpe"].get_vocab()
    lengths = {kind: len(tokenizers[kind](TEXTS[0])["input_ids"]) for kind in ("byte", "bpe")}
    assert lengths["bpe"] < 0.7 * lengths["byte"]


def test_learning_reads_datasets_and_stops_at_max_bytes():
    texts = Dataset.from_dict({"text": ["ab", "cd", "ef"], "source": ["x", "y", "z"]})
    assert {"a", "d"} <= {*build_tokenizer("char", texts, max_bytes=4).get_vocab()}
    assert "e" not in build_tokenizer("char", texts, max_bytes=4).get_vocab()

    def endless():
        while True:
            yield "abc"

    assert len(build_tokenizer("bpe", endless(), 258, max_bytes=1000)) == 258


def test_pretrained_tokenizers_keep_their_ids(tmp_path):
    vocab = {"hello": 0, "world": 1, "</s>": 2}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="</s>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(tmp_path)
    tokenizer = build_tokenizer(str(tmp_path), TEXTS)
    assert tokenizer("hello world")["input_ids"] == [0, 1]
    assert (len(tokenizer), tokenizer.pad_token, tokenizer.pad_token_id) == (3, "</s>", 2)
    with pytest.raises(ValueError, match=r"vocab_size=99 cannot be given"):
        build_tokenizer(str(tmp_path), vocab_size=99)


def test_a_pretrained_tokenizer_without_eos_is_refused(tmp_path):
    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no eos_token"):
        build_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("byte", None, 300), "vocab_size=300 does not fit kind='byte', which has 258"),
        (("bpe", TEXTS, 257), "at least 258"),
        (("char", TEXTS, 3), "must exceed the 3 special tokens"),
        (("bpe",), "give texts"),
        (("char", []), "texts is empty"),
        (("bytes",), "Did you mean 'byte'"),
    ],
)
def test_arguments_that_make_no_tokenizer(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_tokenizer(*arguments)


@pytest.mark.parametrize("texts", ["one string", [1, 2], [None]])
def test_texts_that_are_no_documents(texts):
    with pytest.raises(TypeError, match="texts must"):
        build_tokenizer("char", texts)


@pytest.mark.parametrize("kind", KINDS)
def test_documents_end_in_eos(tokenizers, kind):
    tokenizer = tokenizers[kind]
    corpus = Dataset.from_dict({"body": [*TEXTS, AWKWARD, ""], "source": list("abcd")})
    rows = tokenize_corpus(corpus, tokenizer, "body")
    assert rows.column_names == ["input_ids"]
    for text, ids in zip(corpus["body"], rows["input_ids"], strict=True):
        assert ids.count(tokenizer.eos_token_id) == 1, "its name inside a text is text"
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[:-1]) == text
    for other in (
        tokenize_corpus(corpus, tokenizer, "body", batch_size=1, num_proc=2),
        tokenize_corpus(corpus.to_iterable_dataset(), tokenizer, "body", batch_size=3),
    ):
        assert [row["input_ids"] for row in other] == list(rows["input_ids"])


def test_documents_that_cannot_be_tokenised(tokenizers):
    with pytest.raises(TypeError, match="column 'text' must hold strings, got NoneType"):
        tokenize_corpus(Dataset.from_dict({"text": ["a", None]}), tokenizers["byte"])
    with pytest.raises(ValueError, match=r"which has \['content'\].*text_column"):
        tokenize_corpus(Dataset.from_dict({"content": ["a"]}), tokenizers["byte"])
    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(ValueError, match="no eos_token"):
        tokenize_corpus(Dataset.from_dict({"text": ["a"]}), PreTrainedTokenizerFast(tokenizer_object=backend))


@pytest.mark.parametrize(("kind", "size"), [("byte", 260), ("char", None), ("bpe", 400)])
def test_tokenizers_of_encoders_frame_texts_and_know_their_tokens(kind, size, tmp_path):
    tokenizer = build_tokenizer(kind, [*TEXTS, AWKWARD], size if kind == "bpe" else None, encoder=True)
    assert size is None or len(tokenizer) == size
    names = ("pad_token", "cls_token", "sep_token", "mask_token")
    assert [getattr(tokenizer, name) for name in names] == ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.eos_token is None
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, AWKWARD, ""]:
        ids = tokenizer(text)["input_ids"]
        assert loaded(text)["input_ids"] == ids
        assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        assert loaded.decode(ids[1:-1]) == loaded.decode(ids, skip_special_tokens=True) == text
    pair = loaded("a", "b")
    assert pair["token_type_ids"] == [0, 0, 0, 1, 1]
    assert loaded("a[MASK]b")["input_ids"].count(loaded.mask_token_id) == 1
    assert loaded("a[MASK]b", split_special_tokens=True)["input_ids"].count(loaded.mask_token_id) == 0
    if kind == "byte":
        assert tokenizer("a[PAD]")["input_ids"] == [257, 97, 256, 258]


def test_a_pretrained_tokenizer_of_an_encoder_must_have_its_tokens(tmp_path):
    build_tokenizer("byte", encoder=True).save_pretrained(tmp_path / "encoder")
    build_tokenizer("byte").save_pretrained(tmp_path / "causal")
    assert build_tokenizer(str(tmp_path / "encoder"), encoder=True).eos_token is None
    with pytest.raises(ValueError, match="has no cls_token, sep_token, mask_token"):
        build_tokenizer(str(tmp_path / "causal"), encoder=True)
    with pytest.raises(ValueError, match="at least 260"):
        build_tokenizer("bpe", TEXTS, 259, encoder=True)
    with pytest.raises(ValueError, match="which has 260"):
        build_tokenizer("byte", None, 258, encoder=True)
