"""How well embeddings find documents: nDCG, recall and reciprocal rank with standard errors, BM25 always beside them."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .embedding import TextEmbedder
from .ranking_metrics import METRICS, ranking_metrics, top_documents
from .retrieval_tasks import RetrievalTask
from .run_folder import write_json


BM25 = "BM25"
QUERIES_AT_ONCE = 512
WORDS = r"(?u)[^\W_]+"  # read_file is two words


@dataclass(frozen=True)
class RetrievalScore:
    """Means over queries and their standard errors.

    Attributes:
        retriever: name of what ranked the documents.
        task, length, depth: see `RetrievalTask`.
        num_queries, num_documents: of the task.
        num_cut_documents: documents of which the retriever saw the beginning only.
        means, standard_errors: of each metric, in [0, 1]; the error of one query alone is nan.
    """

    retriever: str
    task: str
    num_queries: int
    num_documents: int
    num_cut_documents: int
    means: dict[str, float]
    standard_errors: dict[str, float]
    length: int | None = None
    depth: float | None = None


@dataclass(frozen=True)
class RetrievalResult:
    """Scores of the encoder and of BM25 on one or more tasks, in the order of the tasks; printing it gives a table."""

    scores: tuple[RetrievalScore, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what is not finite becomes None."""
        scores = [asdict(score) for score in self.scores]
        for score in scores:
            errors = score["standard_errors"]
            score["standard_errors"] = {key: value if math.isfinite(value) else None for key, value in errors.items()}
        return {"metrics": list(METRICS), "scores": scores}

    def to_json(self, path: str) -> None:
        """Write `to_dict` to ``path``, whole or not at all."""
        write_json(path, self.to_dict())

    def __str__(self) -> str:
        from .retrieval_table import render

        return render(self)


def evaluate_retrieval(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: RetrievalTask | Sequence[RetrievalTask],
    *,
    name: str = "encoder",
    query_prompt: str = "",
    document_prompt: str = "",
    max_length: int | None = None,
    truncate_dim: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    pooling: str | None = None,
    pool_with_dense: bool | None = None,
) -> RetrievalResult:
    """Rank the documents of each task by the cosine of embeddings, and by BM25.

    Args:
        model: an M2-BERT encoder.
        tokenizer: its tokenizer.
        tasks: one or several.
        name: of the model in the table.
        query_prompt: stands before every query.
        document_prompt: stands before every document.
        max_length: tokens of the longest text, the rest is cut; missing: the model's positions. BM25 reads whole documents.
        truncate_dim: keep the first dimensions only (Matryoshka); missing: as saved with the model.
        batch_size: texts that run at once; missing: as memory allows.
        progress: show progress bars.
        pooling, pool_with_dense: see `embed_texts`.

    Raises:
        ImportError: bm25s is not installed.
        ValueError: see `embed_texts`.
    """
    require_bm25()
    options = {"max_length": max_length, "batch_size": batch_size, "truncate_dim": truncate_dim, "truncate": True}
    options |= {"pooling": pooling, "pool_with_dense": pool_with_dense, "normalize": True}
    asking = TextEmbedder(model, tokenizer, prompt=query_prompt, **options)
    reading = TextEmbedder(model, tokenizer, prompt=document_prompt, **options)
    scores = []
    for task in [tasks] if isinstance(tasks, RetrievalTask) else tasks:
        queries, _ = _embed(asking, task.queries, progress)
        documents, cut = _embed(reading, task.documents, progress)
        starts = range(0, len(queries), QUERIES_AT_ONCE)
        ranked = [top_documents(queries[start : start + QUERIES_AT_ONCE] @ documents.T) for start in starts]
        scores += [_score(name, task, np.concatenate(ranked), cut), _score(BM25, task, bm25_ranking(task))]
    return RetrievalResult(tuple(scores))


def _embed(embedder: TextEmbedder, texts: Sequence[str], progress: bool) -> tuple[np.ndarray, int]:
    """Vectors of ``texts``, and how many of them were cut."""
    before = embedder.num_truncated
    rows = embedder.tokenize(list(texts))
    with tqdm(total=len(rows), desc="Embedding", unit="text", disable=not progress) as bar:
        return embedder.embed(rows, bar.update), embedder.num_truncated - before


def bm25_ranking(task: RetrievalTask, depth: int = 100) -> np.ndarray:
    """Document indices by BM25 (k1 = 1.5, b = 0.75, Lucene's idf, English stop words), best first, ``(queries, depth)``.

    Words are runs of letters and digits in lower case, so that identifiers fall into their parts. Documents without a common word
    come last, in their order.
    """
    bm25s = require_bm25()
    options = {"token_pattern": WORDS, "stopwords": "en", "show_progress": False}
    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(task.documents), **options), show_progress=False)
    words = bm25s.tokenize(list(task.queries), return_ids=False, **options)
    ranked = []
    for query in words:
        scores = index.get_scores(query) if query else np.zeros(len(task.documents))
        ranked.append(top_documents(np.asarray(scores)[None], depth)[0])
    return np.stack(ranked)


def _score(name: str, task: RetrievalTask, ranked: np.ndarray, cut: int = 0) -> RetrievalScore:
    values, count = ranking_metrics(ranked, task.relevant), len(task.queries)
    spread = {
        key: float(each.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan for key, each in values.items()
    }
    means = {key: float(each.mean()) for key, each in values.items()}
    return RetrievalScore(name, task.name, count, len(task.documents), cut, means, spread, task.length, task.depth)


def require_bm25():
    """The package bm25s.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import bm25s
    except ModuleNotFoundError as error:
        raise ImportError('the BM25 row needs the package bm25s: pip install "hf_elm[retrieval]".') from error
    return bm25s
