"""Retrieval scores as text: one line per retriever, and a grid of length by depth where facts are hidden."""

import io

from rich.console import Console
from rich.table import Table

from .ranking_metrics import METRICS


def render(result) -> str:
    """The tables of a `RetrievalResult`, values in percent with standard errors."""
    grids = [score for score in result.scores if score.length is not None]
    tables = (
        [_lines([score for score in result.scores if score.length is None])] if len(grids) < len(result.scores) else []
    )
    for name in dict.fromkeys(score.retriever for score in grids):
        tables.append(_grid(name, [score for score in grids if score.retriever == name]))
    console = Console(file=io.StringIO(), width=110)
    console.print(*tables)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def _lines(scores):
    first = scores[0]
    table = Table(
        title=f"{first.task}: {first.num_queries} queries, {first.num_documents} documents (%)", title_justify="left"
    )
    table.add_column("")
    for metric in METRICS:
        table.add_column(metric, justify="right")
    for score in scores:
        table.add_row(score.retriever, *(_cell(score, metric) for metric in METRICS))
    if cut := max(score.num_cut_documents for score in scores):
        table.caption = (
            f"The encoder reads the beginning of {cut} documents that are too long for it, BM25 all of them."
        )
    return table


def _grid(name, scores):
    """nDCG@10 by tokens of the documents (rows) and place of the fact (columns)."""
    cells = {(score.length, score.depth): score for score in scores}
    depths = sorted({score.depth for score in scores})
    first = scores[0]
    title = f"{first.task}, {name}: ndcg@10 (%), {first.num_queries} queries and documents in each cell"
    table = Table(title=title, title_justify="left")
    table.add_column("tokens", justify="right")
    for depth in depths:
        table.add_column(f"depth {depth:g}", justify="right")
    for length in sorted({score.length for score in scores}):
        table.add_row(str(length), *(_cell(cells[length, depth], METRICS[0]) for depth in depths))
    return table


def _cell(score, metric):
    return f"{100 * score.means[metric]:.1f} ± {100 * score.standard_errors[metric]:.1f}"
