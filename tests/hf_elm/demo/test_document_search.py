"""Documents by similarity: the cosines of `embed_texts`; masks: the model's own probabilities."""

import numpy as np
import pytest
import torch

from hf_elm.demo.document_search import embed_documents, fill_masks, rank_documents
from hf_elm.demo.m2_bert_html import mask_tables, ranking_table
from hf_elm.demo.shared_model import SharedModel
from hf_elm.embedding import embed_texts
from hf_elm.modeling.m2_bert import M2BertForMaskedLM
from tests.hf_elm.tiny_embedder import texts, tiny_embedder, tiny_tokenizer


QUERY = "the energy of a token"
PLAIN = {"pooling": "mean", "pool_with_dense": False}


@pytest.fixture(scope="module")
def shared():
    return SharedModel(tiny_embedder(), tiny_tokenizer())


@pytest.fixture(scope="module")
def masked():
    return SharedModel(tiny_embedder(M2BertForMaskedLM), tiny_tokenizer())


@pytest.mark.parametrize("embedding", [{}, PLAIN], ids=["as saved", "plain"])
def test_ranking_is_by_cosine(shared, embedding):
    documents = [text for text in texts(23) if text]
    found = embed_documents(shared, "\n\n".join(documents) + "\n", **embedding)
    assert found.texts == documents
    assert found.lines == [2 * i + 1 for i in range(len(documents))]  # blank lines between them are counted
    vectors = embed_texts(shared.model, shared.tokenizer, [*documents, QUERY], normalize=True, **embedding)
    cosines = vectors[:-1] @ vectors[-1]
    order = np.argsort(-cosines, kind="stable")[:7]
    ranking = rank_documents(shared, found, QUERY, 7, **embedding)
    assert [each.text for each in ranking] == [documents[i] for i in order]
    # 1e-5: float32, other batches
    assert [each.similarity for each in ranking] == pytest.approx(cosines[order].tolist(), abs=1e-5)
    shown = ranking_table(ranking, found)
    assert shown.count("<tr>") == 8
    assert f"{ranking[0].similarity:.4f}" in shown


def test_a_document_that_is_the_query_comes_first(shared):
    found = embed_documents(shared, f"both directions at once\n{QUERY}\nfilters reach far")
    best = rank_documents(shared, found, f"  {QUERY} ", 1)
    assert [(each.line, each.text) for each in best] == [(2, QUERY)]
    assert best[0].similarity == pytest.approx(1, abs=1e-5)


def test_long_documents_are_cut_and_counted(shared):
    found = embed_documents(shared, "the " * 100 + "\nthe energy")
    assert found.num_cut == 1
    assert "1 were longer" in ranking_table(rank_documents(shared, found, QUERY, 2), found)


def test_refuses(shared, masked):
    for source, message in (
        ("\n \n", "documents is empty"),
        ("a\n" * 501, "501 lines; at most 500"),
        (None, "must be text"),
    ):
        with pytest.raises(ValueError, match=message):
            embed_documents(shared, source)
    with pytest.raises(ValueError, match="document in line 2 has 20,001 characters"):
        embed_documents(shared, "a\n" + "b" * 20_001)
    found = embed_documents(shared, "the energy")
    for arguments, message in (((" ",), "query is empty"), (("a", 0), "results must be a whole number from 1 to 50")):
        with pytest.raises(ValueError, match=message):
            rank_documents(shared, found, *arguments)
    for text, message in (
        ("the energy", r"0 masks; write \[MASK\]"),
        ("[MASK] " * 17, "17 masks"),
        ("the " * 80, "82 tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            fill_masks(masked, text)


def test_masks_are_filled_by_the_models_probabilities(masked):
    text = "the [MASK] of a [MASK]"
    inputs = masked.tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        probs = masked.model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[0].softmax(-1)
    places = (inputs["input_ids"][0] == masked.tokenizer.mask_token_id).nonzero().flatten().tolist()
    found = fill_masks(masked, text, num_tokens=4)
    assert len(found) == len(places) == 2
    for mask, place in zip(found, places, strict=True):
        expected = probs[place].topk(4)
        assert mask.probs == pytest.approx(expected.values.tolist(), abs=1e-6)
        assert mask.labels == [repr(masked.tokenizer.decode([token])) for token in expected.indices]
    assert mask_tables(found).count("<table") == 2
