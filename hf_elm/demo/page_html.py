"""Pieces of HTML: tokens as buttons, tables with bars in their cells. All text of users and models is escaped.

Colours lie over the page's own background, so that they serve a light and a dark page alike.
"""

import ast
import html
from collections.abc import Sequence


LOW = "37, 99, 235"  # blue: made likelier
HIGH = "217, 119, 6"  # orange: made less likely
BAR = "13, 148, 136"
_TEMPLATE = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;", "\\": "&#92;"})

CSS = """
.elm-mono textarea, .elm-flow, .elm-table td.elm-code {
  font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace}
.elm-label {margin: 2px 0 6px; font-size: 14px; color: var(--block-label-text-color)}
.elm-flow {font-size: 14px; line-height: 1.75; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; padding: 8px 10px;
  border: 1px solid var(--border-color-primary); border-radius: 6px; background: var(--background-fill-primary);
  color: var(--body-text-color); min-height: 3.2em; max-height: 420px; overflow-y: auto}
.elm-flow button {all: unset; cursor: pointer; border-radius: 3px; padding: 1px 0; white-space: pre-wrap}
.elm-flow button:hover, .elm-flow button:focus-visible {outline: 2px solid var(--body-text-color)}
.elm-flow button[aria-pressed="true"] {outline: 2px solid var(--color-accent); outline-offset: 1px; font-weight: 700}
.elm-flow .elm-mark, .elm-flow .elm-prompt {opacity: 0.65}
.elm-table {border-collapse: collapse; width: 100%; font-size: 14px; color: var(--body-text-color)}
.elm-table caption {text-align: left; padding: 0 0 6px}
.elm-table th, .elm-table td {padding: 4px 10px; border-bottom: 1px solid var(--border-color-primary); text-align: right;
  font-variant-numeric: tabular-nums}
.elm-table th {font-weight: 600; vertical-align: bottom}
.elm-table .elm-text, .elm-table .elm-code {text-align: left}
.elm-table td.elm-text, .elm-table td.elm-code {overflow-wrap: anywhere}
.elm-table td.elm-code {white-space: pre-wrap}
.elm-table tr.elm-taken td {font-weight: 700}
.elm-table td.elm-bar {text-align: left; width: 30%; min-width: 110px}
.elm-scroll {overflow: auto; max-height: 420px}
.elm-note, .elm-legend {font-size: 13px; color: var(--body-text-color); opacity: 0.8; margin: 6px 0}
.elm-legend span {padding: 1px 6px; border-radius: 3px}
.elm-title h1 {font-size: 22px; font-weight: 700; margin: 4px 0 0; color: var(--body-text-color)}
.elm-title p {margin: 2px 0 0; color: var(--body-text-color); opacity: 0.8}
"""


def escaped(text: str) -> str:
    """``text`` for HTML, without anything that Gradio's templates read."""
    return html.escape(str(text)).translate(_TEMPLATE)


def token_text(label: str) -> str:
    """The token's text behind a label of `hf_elm.plots.prompt_refinement.token_labels`; its name where it is no whole character."""
    return ast.literal_eval(label) if label[:1] in ("'", '"') else label


def shade(value: float, scale: float) -> str:
    """A background colour: blue for values below 0, orange above, its strength the root of ``|value| / scale``."""
    strength = 0.0 if scale <= 0 else min(1.0, abs(value) / scale) ** 0.5
    return f"rgba({LOW if value < 0 else HIGH}, {0.7 * strength:.3f})"


def token_flow(
    labels: Sequence[str],
    values: Sequence[float],
    titles: Sequence[str],
    selected: int | None = None,
    prompt: str = "",
    scale: float | None = None,
) -> str:
    """Tokens as they follow each other, each a button with ``data-step``, coloured by its value.

    Args:
        values: one per token, shown as colour; see `shade`.
        titles: one per token, shown when it is pointed at.
        selected: index of the marked one.
        prompt: stands before them, without colour.
        scale: the value of full colour; None = the largest of ``values``.
    """
    scale = max((abs(value) for value in values), default=0.0) if scale is None else scale
    buttons = [
        f'<button type="button" data-step="{i}" aria-pressed="{str(i == selected).lower()}" title="{escaped(title)}" '
        f'style="background-color: {shade(value, scale)}">{_shown(token_text(label))}</button>{_break(label)}'
        for i, (label, value, title) in enumerate(zip(labels, values, titles, strict=True))
    ]
    before = f'<span class="elm-prompt">{escaped(prompt)}</span>' if prompt else ""
    return f'<div class="elm-flow">{before}{"".join(buttons)}</div>'


def _shown(text):
    """Line ends and tabs as signs, so that there is something to click on."""
    signs = {"\n": '<span class="elm-mark">↵</span>', "\t": '<span class="elm-mark">→</span>'}
    return "".join(signs.get(character) or escaped(character) for character in text) or "∅"


def _break(label):
    return "\n" * token_text(label).count("\n")


def legend(low: str, high: str) -> str:
    """What the two colours of `token_flow` mean; a colour without words is left out."""
    samples = [
        f'<span style="background-color: rgba({colour}, 0.6)">{escaped(words)}</span>'
        for colour, words in ((LOW, low), (HIGH, high))
        if words
    ]
    return f'<p class="elm-legend">{" ".join(samples)}</p>'


def bar(share: float, text: str, colour: str = BAR) -> str:
    """A cell with a bar of ``share`` of its width, in [0, 1], and a text on it."""
    width = 100 * min(1.0, max(0.0, share))
    image = f"linear-gradient(90deg, rgba({colour}, 0.45) {width:.1f}%, transparent {width:.1f}%)"
    return f'<td class="elm-bar" style="background: {image}">{escaped(text)}</td>'


def cell(text: str, kind: str = "") -> str:
    """A cell of escaped text; ``kind``: "" (number), "text" or "code"."""
    return f"<td{_class(kind)}>{escaped(text)}</td>"


def table(header: Sequence[tuple[str, str]], rows: Sequence[tuple[str, bool]], caption: str = "") -> str:
    """A table.

    Args:
        header: (title, kind) of each column; see `cell`.
        rows: (cells, whether the row is emphasised), the cells joined.
    """
    titles = "".join(f'<th scope="col"{_class(kind)}>{escaped(title)}</th>' for title, kind in header)
    body = "".join(f"<tr{_class('taken' if strong else '')}>{cells}</tr>" for cells, strong in rows)
    head = f"<caption>{escaped(caption)}</caption>" if caption else ""
    return (
        f'<div class="elm-scroll"><table class="elm-table">{head}<thead><tr>{titles}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def note(text: str) -> str:
    """A line of small print."""
    return f'<p class="elm-note">{escaped(text)}</p>'


def _class(kind):
    return f' class="elm-{kind}"' if kind else ""
