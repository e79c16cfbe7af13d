"""Accuracy of retrievers against the length of documents in which a fact is hidden."""

from ..long_context import LengthCurves
from .figure_files import finish, new_figure


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv<>"


def plot_length_curves(data: LengthCurves, path=None, trained_length: int | None = None):
    """One panel per depth and one for all depths together; bars are standard errors. Returns the Figure, written to ``path`` if given.

    Args:
        trained_length: tokens of the training documents; a dotted line stands there.
    """
    panels = [*data.depths, None]
    figure = new_figure(3.4 * len(panels), 4.0)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, depth in zip(axes, panels, strict=True):
        for number, name in enumerate(data.curves):
            cells = data.by_length(name) if depth is None else [c for c in data.curves[name] if c.depth == depth]
            ax.errorbar(
                [cell.length for cell in cells],
                [100 * cell.accuracy for cell in cells],
                [100 * cell.standard_error for cell in cells],
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                markersize=4,
                capsize=2,
                linewidth=1.2,
                label=name,
            )
        if trained_length is not None:
            ax.axvline(trained_length, color="grey", linestyle=":", linewidth=1)
        ax.set_xscale("log", base=2)
        ax.set_xticks(data.lengths, [str(length) for length in data.lengths], rotation=45, fontsize=8)
        ax.set_ylim(-4, 104)
        ax.grid(alpha=0.3)
        ax.set(title="all depths" if depth is None else f"fact at depth {depth:g}", xlabel="tokens of a document")
    axes[0].set_ylabel("own document first (%)")
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    questions = sorted({cell.num_questions for cells in data.curves.values() for cell in cells})
    each = " or ".join(map(str, questions))
    figure.suptitle(f"{data.kind}: {each} questions and documents at each depth; bars: standard error", fontsize=11)
    return finish(figure, path)
