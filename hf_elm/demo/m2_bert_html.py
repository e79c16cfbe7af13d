"""An M2-BERT model's findings as HTML: ranked documents and filled masks."""

from collections.abc import Sequence

from .document_search import EmbeddedDocuments, FilledMask, RankedDocument
from .page_html import bar, cell, note, table


def ranking_table(ranking: Sequence[RankedDocument], documents: EmbeddedDocuments) -> str:
    """Documents by similarity, best first."""
    header = [("rank", ""), ("line", ""), ("document", "text"), ("cosine similarity", "text")]
    rows = [
        (cell(str(rank)) + cell(str(each.line)) + cell(each.text, "text") + bar(each.similarity, f"{each.similarity:.4f}"), False)
        for rank, each in enumerate(ranking, start=1)
    ]  # fmt: skip
    count, dimensions = documents.vectors.shape
    words = f"{count:,} documents as vectors of {dimensions} dimensions."
    if documents.num_cut:
        words += f" {documents.num_cut:,} were longer than the model reads and were cut."
    return table(header, rows, "Most similar documents") + note(words)


def mask_tables(masks: Sequence[FilledMask]) -> str:
    """The likeliest tokens of each mask, with probabilities."""
    header = [("token", "code"), ("probability", "text")]
    return "".join(
        table(
            header,
            [(cell(label, "code") + bar(prob, f"{prob:.2%}"), False) for label, prob in zip(mask.labels, mask.probs, strict=True)],
            f"Mask {number} of {len(masks)}",
        )
        for number, mask in enumerate(masks, start=1)
    )  # fmt: skip
