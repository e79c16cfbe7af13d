"""How far an encoder finds a fact hidden in documents of growing length: accuracy by length and depth, BM25 beside it."""

import copy
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .embedding import TextEmbedder
from .modeling.m2_bert.context_extension import extend_context
from .ranking_metrics import top_documents
from .retrieval_evaluation import BM25, bm25_ranking, require_bm25
from .retrieval_tasks import hidden_fact_task
from .run_folder import write_json
from .trainers.retrieval_pairs import RetrievalPairs


DEPTHS = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class LengthScore:
    """One cell of a curve.

    Attributes:
        length, depth: tokens of every document, and where the fact stands, 0 = first.
        accuracy: share of questions whose own document ranks first, among ``num_questions`` of equal form.
        standard_error: sqrt(p (1 - p) / n) at p = (hits + 1) / (n + 2), so that it is not 0 where all or none are right.
        num_questions: questions, and documents.
        num_cut: documents of which the retriever saw the beginning only.
    """

    length: int
    depth: float
    accuracy: float
    standard_error: float
    num_questions: int
    num_cut: int = 0


@dataclass(frozen=True)
class LengthCurves:
    """Accuracy of several retrievers on the same documents; printing it gives a table.

    Attributes:
        kind: ``"passkey"`` or ``"needle"``.
        curves: name of a retriever -> its cells, by length and depth.
    """

    kind: str
    curves: dict[str, tuple[LengthScore, ...]]

    def by_length(self, name: str) -> list[LengthScore]:
        """The cells of one retriever over all depths together; ``depth`` is nan."""
        cells = self.curves[name]
        return [_joined([cell for cell in cells if cell.length == length]) for length in self.lengths]

    @property
    def lengths(self) -> list[int]:
        """Lengths that were measured, ascending."""
        return sorted({cell.length for cells in self.curves.values() for cell in cells})

    @property
    def depths(self) -> list[float]:
        """Depths that were measured, ascending."""
        return sorted({cell.depth for cells in self.curves.values() for cell in cells})

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"kind": self.kind, "curves": {name: [asdict(c) for c in cells] for name, cells in self.curves.items()}}

    def to_json(self, path: str) -> None:
        """Write `to_dict` to ``path``, whole or not at all."""
        write_json(path, self.to_dict())

    def __str__(self) -> str:
        table = Table(
            title=Text(f"{self.kind}: own document first (%), chance {self._chance()}"), title_justify="left"
        )
        table.add_column("")
        table.add_column("tokens", justify="right")
        for depth in self.depths:
            table.add_column(f"depth {depth:g}", justify="right")
        table.add_column("all", justify="right")
        for name, cells in self.curves.items():
            for whole in self.by_length(name):
                row = {cell.depth: _cell(cell) for cell in cells if cell.length == whole.length}
                table.add_row(name, str(whole.length), *(row.get(depth, "") for depth in self.depths), _cell(whole))
        console = Console(file=io.StringIO(), width=110)
        console.print(table)
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())

    def _chance(self):
        counts = {cell.num_questions for cells in self.curves.values() for cell in cells}
        return " or ".join(f"{100 / count:.1f}" for count in sorted(counts))


def _cell(score):
    return f"{100 * score.accuracy:.0f} ± {100 * score.standard_error:.0f}"


def _score(length, depth, hits, count, cut) -> LengthScore:
    share = (hits + 1) / (count + 2)
    return LengthScore(length, depth, hits / count, math.sqrt(share * (1 - share) / count), count, cut)


def _joined(cells: Sequence[LengthScore]) -> LengthScore:
    hits, count = sum(c.accuracy * c.num_questions for c in cells), sum(c.num_questions for c in cells)
    return _score(cells[0].length, math.nan, round(hits), count, sum(c.num_cut for c in cells))


def length_curves(
    models: Mapping[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    lengths: Sequence[int],
    depths: Sequence[float] = DEPTHS,
    *,
    documents: int | Mapping[int, int] = 50,
    part: str | None = "test",
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> LengthCurves:
    """Accuracy by length and depth of M2-BERT encoders, and of BM25, on the same documents.

    An encoder reads as many tokens as it has positions; the rest of a longer document is cut off.

    Args:
        models: name -> encoder; all with ``tokenizer``.
        kind: ``"passkey"`` or ``"needle"``, see `hidden_fact_task`.
        documents: of each length and depth; a mapping gives each length its own number.
        part: facts of which part, see `hidden_fact_task`; "test" where `hidden_fact_pairs` were trained on.
        batch_size: texts that run at once; None = as memory allows.

    Raises:
        ImportError: bm25s is not installed.
        ValueError: see `hidden_fact_task`.
    """
    require_bm25()
    options = {"max_length": None, "batch_size": batch_size, "truncate": True, "normalize": True}
    embedders = {name: TextEmbedder(model, tokenizer, **options) for name, model in models.items()}
    curves: dict[str, list[LengthScore]] = {name: [] for name in (*models, BM25)}
    cells = [(length, depth) for length in sorted(lengths) for depth in sorted(depths)]
    for length, depth in tqdm(cells, unit="cell", disable=not progress):
        count = documents[length] if isinstance(documents, Mapping) else documents
        task = hidden_fact_task(kind, tokenizer, length, depth, count, seed, part)
        for name, embedder in embedders.items():
            before = embedder.num_truncated
            queries, texts = (embedder.embed(embedder.tokenize(list(each))) for each in (task.queries, task.documents))
            first = top_documents(queries @ texts.T, 1)[:, 0]
            curves[name].append(_cell_of(length, depth, first, embedder.num_truncated - before))
        curves[BM25].append(_cell_of(length, depth, bm25_ranking(task, 1)[:, 0], 0))
    return LengthCurves(kind, {name: tuple(scores) for name, scores in curves.items()})


def _cell_of(length, depth, first: np.ndarray, cut) -> LengthScore:
    return _score(length, depth, int((first == np.arange(len(first))).sum()), len(first), cut)


def extended(model: PreTrainedModel, new_length: int, mode: str = "prefix") -> PreTrainedModel:
    """A copy of an M2-BERT model with room for ``new_length`` tokens, see `extend_context`."""
    return extend_context(copy.deepcopy(model), new_length, mode)


def hidden_fact_pairs(
    kind: str, tokenizer: PreTrainedTokenizerBase, length: int, depths: Sequence[float] = DEPTHS, rounds: int = 4, seed: int = 0
) -> RetrievalPairs:  # fmt: skip
    """Questions with their documents to train a retriever on; facts of the train part, new filler and places in each round.

    Args:
        length: tokens of each document.
        depths: where facts stand; every round draws one for each part of the questions, in turn.
        rounds: documents of each pair of person and thing.

    Raises:
        ValueError: see `hidden_fact_task`.
    """
    queries, documents = [], []
    for number in range(rounds * len(depths)):
        task = hidden_fact_task(kind, tokenizer, length, depths[number % len(depths)], None, seed + number, "train")
        share = slice(number % len(depths), None, len(depths))  # a third of the facts at each of three depths
        queries += task.queries[share]
        documents += task.documents[share]
    order = np.random.default_rng(seed).permutation(len(queries))
    return RetrievalPairs(
        [queries[i] for i in order], [documents[i] for i in order], [[i] for i in range(len(order))], negatives_per_query=0
    )  # fmt: skip
