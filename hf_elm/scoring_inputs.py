"""The documents that ``hf-elm score`` reads from a corpus, with ids; files are read by `embedding_inputs`."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import torch

from .embedding_inputs import EmbeddingInputs


def corpus_inputs(
    data: dict[str, Any], part: str = "all", seed: int = 0, text_column: str = "text", documents: int = 0
) -> EmbeddingInputs:
    """The documents of ``part`` of a corpus. Ids: the file of each where files are documents, else file and number, else number.

    Args:
        data: ``corpus`` and other arguments of `trainers.corpora.load_corpus`.
        part: ``"all"``, ``"train"`` or ``"held_out"``, as a run with ``seed`` splits them.
        documents: so many from the start of a stream, which is not drawn from; 0 = all.

    Raises:
        ValueError: a stream without an end to it, prepared rows, which hold no text; see also `load_corpus`.
    """
    import datasets  # of the extra "train", as are the corpora

    from .checkpoint_likelihood import corpus_part
    from .trainers.corpora import load_corpus
    from .training_run import corpus_options

    rows = corpus_part(load_corpus(**corpus_options(data | {"text_column": text_column}), seed=seed), part)
    if rows.column_names and "text" not in rows.column_names:
        raise ValueError(f"data.corpus={data['corpus']} holds packed rows and no text; score the text itself.")
    if isinstance(rows, datasets.IterableDataset):
        if not documents and data.get("max_bytes") is None:
            raise ValueError(
                f"data.corpus={data['corpus']} is a stream; say how much of it by documents= or data.max_bytes=, or read it whole "
                "by data.streaming=false."
            )
        rows = datasets.Dataset.from_list(list(itertools.islice(rows, documents or None)))
    texts = list(rows["text"])
    if "source" not in rows.column_names:
        return EmbeddingInputs(texts, list(range(len(texts))))
    sources = list(rows["source"])
    return EmbeddingInputs(texts, _numbered(sources), {"source": sources})


def drawn(inputs: EmbeddingInputs, documents: int, seed: int) -> EmbeddingInputs:
    """``documents`` of the inputs (0, or more than there are: all), drawn by ``seed``, in their order."""
    if not documents or documents >= len(inputs.texts):
        return inputs
    order = torch.randperm(len(inputs.texts), generator=torch.Generator().manual_seed(seed))
    chosen = sorted(order[:documents].tolist())
    kept = {name: [values[i] for i in chosen] for name, values in inputs.kept.items()}
    return EmbeddingInputs([inputs.texts[i] for i in chosen], [inputs.ids[i] for i in chosen], kept)


def beginning(text: str, document_bytes: int) -> str:
    """The first ``document_bytes`` UTF-8 bytes (0 = all) of a text, without half a character at the end."""
    if not document_bytes:
        return text
    return text.encode("utf-8", errors="surrogatepass")[:document_bytes].decode("utf-8", errors="ignore")


def _numbered(sources: list[str]) -> list[str]:
    """The sources, with a number behind them where they are not unique."""
    total, seen = Counter(sources), Counter()
    names = []
    for source in sources:
        names.append(source if total[source] == 1 else f"{source}:{seen[source]}")
        seen[source] += 1
    return names
