"""A text's heat map as one HTML page: no script, nothing fetched, readable on light and dark screens."""

from __future__ import annotations

import html
import os
from pathlib import Path

from .figure_files import check_output, write_new
from .text_heatmap import BLUE, UNITS, TextHeatmap, TextPiece


STRONGEST = 0.6  # opacity of the strongest colour: the text on it stays readable on white and on black
LOW, HIGH = (0, 114, 178), (213, 94, 0)  # blue: a gain, or E below 0; orange: a loss, or E above 0
_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --quiet: #595959; --paper: #ffffff; --panel: #f2f2f2; --line: #c8c8c8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececec; --quiet: #b0b0b0; --paper: #161616; --panel: #262626; --line: #4a4a4a; }
}
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 62rem;
  padding: 1.5rem 1.5rem 7rem; }
h1 { font-size: 1.2rem; margin: 0 0 .3rem; }
p, table { color: var(--quiet); font-size: .85rem; margin: .3rem 0; }
td { padding: 0 1.2rem 0 0; font-variant-numeric: tabular-nums; }
.legend { align-items: center; display: flex; flex-wrap: wrap; gap: .6rem; margin: .8rem 0; font-size: .85rem; }
.scale { border: 1px solid var(--line); height: 1rem; width: 16rem; }
.none { border-bottom: 2px dotted var(--quiet); }
pre { border: 1px solid var(--line); border-radius: 4px; font: 14px/1.75 ui-monospace, monospace; overflow-wrap: anywhere;
  padding: .8rem 1rem; tab-size: 4; white-space: pre-wrap; }
pre span { border-radius: 2px; }
pre i { color: var(--quiet); font-style: normal; opacity: .7; }
pre span:hover, pre span:focus { outline: 2px solid var(--ink); }
pre span:hover::after, pre span:focus::after { background: var(--panel); border-top: 1px solid var(--line); bottom: 0;
  color: var(--ink); content: attr(data-tip); font: 13px/1.5 ui-monospace, monospace; left: 0; padding: .6rem 1.5rem;
  position: fixed; right: 0; white-space: pre-wrap; }
"""


def heatmap_page(data: TextHeatmap, colour: str = "gain", title: str = "Heat map") -> str:
    """The page. Pointing at a piece, or moving to it with the tabulator key, shows its token and numbers.

    Args:
        colour: "gain", log p_ELM - log p_LM (blue above 0), or "energy", E (blue below 0).
        title: shown as it is.
    """
    largest = data.largest(colour)
    pieces = "".join(_span(piece, colour, largest) for piece in data.pieces)
    cut = f"<p>The last {data.cut:,} characters of the text are not shown.</p>\n" if data.cut else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n{_summary(data)}{_legend(colour, largest)}<pre>{pieces}</pre>\n{cut}</body>\n</html>\n"
    )


def save_heatmap_page(
    data: TextHeatmap, path: str | os.PathLike, colour: str = "gain", title: str = "Heat map"
) -> Path:
    """Writes `heatmap_page` to the new file ``path``; see `hf_elm.plots.figure_files.check_output` for what is refused."""
    check_output(path, (".html",))
    page = heatmap_page(data, colour, title)
    return write_new(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))


def shade(value: float, largest: float) -> tuple[tuple[int, int, int], float]:
    """(red, green, blue) and opacity of a gain of ``value`` nats."""
    return LOW if value > 0 else HIGH, STRONGEST * min(abs(value) / largest, 1.0)


def gain_sign(colour: str) -> float:
    """1 where larger values are likelier, -1 for energies."""
    return -1.0 if colour == "energy" else 1.0


def _span(piece: TextPiece, colour, largest):
    text = html.escape(piece.text).replace("\n", "<i>↵</i>\n")
    value = piece.value(colour)
    attributes = 'class="none"'
    if value is not None:
        rgb, opacity = shade(gain_sign(colour) * value, largest)
        attributes = f'style="background:rgba({rgb[0]},{rgb[1]},{rgb[2]},{opacity:.3f})"'
    tip = html.escape(_tip(piece), quote=True).replace("\n", "&#10;")
    return f'<span {attributes} data-tip="{tip}" tabindex="0">{text}</span>'


def _tip(piece: TextPiece) -> str:
    name = "token " if len(piece.tokens) == 1 else f"{len(piece.tokens)} tokens "
    first = f"{name}{' '.join(piece.tokens)}   text {piece.text!r}"
    if piece.energy is None:
        return f"{first}\nno prediction: nothing stands before it, or the tokenizer does not know it"
    log_z = f"log Z {piece.log_z:+.4f}"
    if piece.log_z_lower != piece.log_z_upper:
        log_z += f" (in [{piece.log_z_lower:+.4f}, {piece.log_z_upper:+.4f}])"
    return (
        f"{first}\nlog p_LM {piece.lm_log_prob:.4f}   E {piece.energy:+.4f}   {log_z}   log p_ELM {piece.elm_log_prob:.4f}   "
        f"gain {piece.value('gain'):+.4f}   (nats)"
    )


def _summary(data: TextHeatmap) -> str:
    lm, elm = data.nll("lm"), data.nll("elm")
    point = "" if data.is_exact else ", at the middle of its bounds"
    return (
        f"<table><tr><td>tokens scored</td><td>{data.num_scored:,} of {data.num_tokens:,}</td></tr>"
        f"<tr><td>NLL of the LM</td><td>{lm:.4f} nats/token</td></tr>"
        f"<tr><td>NLL of the ELM</td><td>{elm:.4f} nats/token ({html.escape(data.how)}{point})</td></tr>"
        f"<tr><td>gain</td><td>{lm - elm:+.4f} nats/token</td></tr></table>\n"
    )


def _legend(colour, largest):
    stops = []
    for step in range(-4, 5):
        rgb, opacity = shade(gain_sign(colour) * step * largest / 4, largest)
        stops.append(f"rgba({rgb[0]},{rgb[1]},{rgb[2]},{opacity:.3f})")
    return (
        f'<div class="legend"><span>{UNITS[colour]}</span><span>≤ −{largest:.3g}</span>'
        f'<span class="scale" style="background:linear-gradient(to right,{",".join(stops)})"></span>'
        f'<span>≥ +{largest:.3g}</span><span>{BLUE[colour]}</span><span class="none">no prediction</span></div>\n'
    )
