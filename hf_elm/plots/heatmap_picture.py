"""A text's heat map as a figure: its characters in lines of one width, each on its colour."""

from __future__ import annotations

import textwrap

from .figure_files import finish, new_figure, shown_text
from .heatmap_page import HIGH, LOW, STRONGEST, gain_sign, shade
from .text_heatmap import BLUE, UNITS, TextHeatmap


COLUMNS = 96  # characters of a line
MOST_LINES = 60
_FONT_SIZE = 9.0  # points
_ADVANCE = 0.602  # of a character of matplotlib's monospaced font, in font sizes
_LINE_HEIGHT = 1.6  # in font sizes
_FEWEST_COLUMNS = 80  # room for the legend above the text
_REMARK = 54  # characters of a line beside the legend
_MARGIN, _HEAD = 0.3, 0.95  # inches


def plot_text_heatmap(data: TextHeatmap, colour: str = "gain", path=None):
    """The first `MOST_LINES` lines of the text; returns the Figure, written to ``path`` if given.

    Args:
        colour: "gain", log p_ELM - log p_LM (blue above 0), or "energy", E (blue below 0).
    """
    cells, lines, cut = text_cells(data, colour)
    columns = max(_FEWEST_COLUMNS, *(column + len(text) for column, _, text, _ in cells))
    width, height = columns * _ADVANCE * _FONT_SIZE / 72, lines * _LINE_HEIGHT * _FONT_SIZE / 72  # inches
    page_width, page_height = width + 2 * _MARGIN, height + _MARGIN + _HEAD
    figure = new_figure(page_width, page_height)
    figure.set_layout_engine("none")
    ax = figure.add_axes((_MARGIN / page_width, _MARGIN / page_height, width / page_width, height / page_height))
    ax.set(xlim=(0, columns), ylim=(lines, 0))
    ax.set_axis_off()
    largest = data.largest(colour)
    _draw_cells(ax, cells, gain_sign(colour), largest)
    place = (2 * _MARGIN / page_width, 1 - 0.55 / page_height, 2.2 / page_width, 0.16 / page_height)
    _draw_scale(figure.add_axes(place), colour, largest)
    dropped = f"; {cut + data.cut:,} characters more" if cut + data.cut else ""
    numbers = f"{data.num_scored:,} tokens: LM {data.nll('lm'):.4f}, ELM {data.nll('elm'):.4f} nats/token"
    remarks = [numbers, *textwrap.wrap(f"{data.how}{dropped}", _REMARK), BLUE[colour]]
    place = ((2 * _MARGIN + 2.6) / page_width, 1 - 0.47 / page_height)
    figure.text(*place, "\n".join(remarks), fontsize=8, va="center")
    return finish(figure, path)


def text_cells(data: TextHeatmap, colour: str) -> tuple[list[tuple[float, float, str, float | None]], int, int]:
    """(column, line, text, value) of what stands together on one line, the number of lines, and of characters left out.

    A piece goes on in the next line where it is full; a line end is shown as ↵.
    """
    cells, line, column, left_out = [], 0, 0, 0
    for piece in data.pieces:
        if line >= MOST_LINES:
            left_out += len(piece.text)
            continue
        for part in piece.text.replace("\t", "    ").replace("\n", "↵\n").splitlines(keepends=True):
            shown = shown_text(part.rstrip("\r\n")).replace(r"\$", "$")
            while shown and line < MOST_LINES:
                here, shown = shown[: COLUMNS - column], shown[COLUMNS - column :]
                cells.append((column, line, here, piece.value(colour)))
                column += len(here)
                if column >= COLUMNS and shown:
                    line, column = line + 1, 0
            left_out += len(shown)
            if part.endswith("\n") or column >= COLUMNS:
                line, column = line + 1, 0
    return [cell for cell in cells if cell[1] < MOST_LINES], min(line + (column > 0), MOST_LINES), left_out


def _draw_cells(ax, cells, sign, largest):
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    boxes, colours = [], []
    for column, line, text, value in cells:
        if value is None:
            ax.plot([column, column + len(text)], [line + 0.93] * 2, color="#777777", linestyle=":", linewidth=0.8)
        else:
            rgb, opacity = shade(sign * value, largest)
            boxes.append(Rectangle((column, line + 0.04), len(text), 0.92))
            colours.append((*(each / 255 for each in rgb), opacity))
        faint = text == "↵"
        ax.text(
            column, line + 0.5, text.replace("$", r"\$"), family="monospace", fontsize=_FONT_SIZE, va="center_baseline",
            color="#888888" if faint else "black", clip_on=True,
        )  # fmt: skip
    ax.add_collection(PatchCollection(boxes, facecolor=colours, edgecolor="none", zorder=0))


def _draw_scale(ax, colour, largest):
    from matplotlib.colors import LinearSegmentedColormap

    def mixed(rgb):  # on white paper
        return [1 - STRONGEST * (1 - each / 255) for each in rgb]

    ends = [mixed(HIGH), (1, 1, 1), mixed(LOW)]
    colours = LinearSegmentedColormap.from_list("gain", ends if gain_sign(colour) > 0 else ends[::-1])
    ax.imshow([[i / 255 for i in range(256)]], aspect="auto", cmap=colours, extent=(-largest, largest, 0, 1))
    ax.set_yticks([])
    ax.set_xticks([-largest, 0, largest], [f"≤ −{largest:.3g}", "0", f"≥ {largest:.3g}"], fontsize=8)
    ax.set_title(UNITS[colour], fontsize=8.5, loc="left")
