"""Documents ranked by their similarity to a query, and masked words filled, by an M2-BERT encoder."""

from dataclasses import dataclass

import numpy as np
import torch

from ..embedding import TextEmbedder
from ..plots.prompt_refinement import token_labels
from .request_limits import MAX_DOCUMENT, MAX_DOCUMENTS, MAX_PROMPT, checked_number, checked_text
from .shared_model import SharedModel


MAX_MASKS = 16


@dataclass
class EmbeddedDocuments:
    """Texts and their vectors.

    Attributes:
        source: what the user typed, one document per line.
        texts: its lines that are not blank.
        lines: their numbers in ``source``, from 1.
        vectors: of unit length, ``(documents, dimensions)``.
        num_cut: documents longer than the model reads; the rest of those was left out.
    """

    source: str
    texts: list[str]
    lines: list[int]
    vectors: np.ndarray
    num_cut: int


@dataclass
class RankedDocument:
    """A document and the cosine of the angle between its vector and the query's, in [-1, 1]."""

    line: int
    text: str
    similarity: float


def embed_documents(shared: SharedModel, source: str, **embedding) -> EmbeddedDocuments:
    """The vectors of the documents in ``source``, one per line.

    Args:
        shared: of an M2-BERT model, any head.
        embedding: ``pooling`` and ``pool_with_dense`` of `hf_elm.embedding.embed_texts`; by default as saved with the model.

    Raises:
        ValueError: no documents, too many, one too long.
    """
    checked_text("documents", source, MAX_DOCUMENTS * MAX_DOCUMENT)
    numbered = [(number, line.strip()) for number, line in enumerate(source.splitlines(), start=1) if line.strip()]
    if len(numbered) > MAX_DOCUMENTS:
        raise ValueError(f"documents has {len(numbered):,} lines; at most {MAX_DOCUMENTS} documents are taken here.")
    for number, text in numbered:
        checked_text(f"document in line {number}", text, MAX_DOCUMENT)
    texts = [text for _, text in numbered]
    vectors, num_cut = _unit_vectors(shared, texts, embedding)
    return EmbeddedDocuments(source, texts, [number for number, _ in numbered], vectors, num_cut)


def rank_documents(
    shared: SharedModel, documents: EmbeddedDocuments, query: str, results: int = 10, **embedding
) -> list[RankedDocument]:
    """The ``results`` documents most similar to ``query``, best first; ties in the order of the lines.

    Raises:
        ValueError: an empty or too long query, results out of range.
    """
    count = checked_number("results", results)
    vectors, _ = _unit_vectors(shared, [checked_text("query", query, MAX_DOCUMENT).strip()], embedding)
    similarities = documents.vectors @ vectors[0]
    best = np.argsort(-similarities, kind="stable")[:count]
    return [RankedDocument(documents.lines[i], documents.texts[i], float(similarities[i])) for i in best]


def _unit_vectors(shared, texts, embedding):
    with shared.lock:
        embedder = TextEmbedder(shared.model, shared.tokenizer, truncate=True, normalize=True, **embedding)
        vectors = embedder.embed(embedder.tokenize(texts))
    return vectors, embedder.num_truncated


@dataclass
class FilledMask:
    """The likeliest tokens in the place of one mask, with their probabilities, the likeliest first."""

    labels: list[str]
    probs: list[float]


@torch.no_grad()
def fill_masks(shared: SharedModel, text: str, num_tokens: int = 5) -> list[FilledMask]:
    """What stands behind each mask of ``text``, in order.

    Args:
        shared: of an `M2BertForMaskedLM`.

    Raises:
        ValueError: no mask or too many, a text longer than the model reads.
    """
    model, tokenizer = shared.model, shared.tokenizer
    text = checked_text("text", text, MAX_PROMPT)
    with shared.lock:  # a search sets the tokenizer's truncation meanwhile
        inputs = tokenizer(text, return_tensors="pt").to(shared.device)
    ids, limit = inputs["input_ids"], model.config.max_position_embeddings
    if ids.shape[1] > limit:
        raise ValueError(f"text has {ids.shape[1]} tokens; the model reads {limit}. Shorten it.")
    places = (ids[0] == tokenizer.mask_token_id).nonzero().flatten()
    if not 1 <= len(places) <= MAX_MASKS:
        raise ValueError(
            f"text has {len(places)} masks; write {tokenizer.mask_token} in 1 to {MAX_MASKS} places that the model is to fill."
        )
    with shared.lock:
        logits = model(ids, attention_mask=inputs["attention_mask"]).logits[0, places]
    probs, tokens = logits.float().softmax(-1).topk(min(num_tokens, logits.shape[-1]))
    return [
        FilledMask(token_labels(tokenizer, row.tolist()), own.tolist()) for row, own in zip(tokens, probs, strict=True)
    ]
