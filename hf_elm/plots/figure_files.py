"""Figures and their files: made without a display, written whole or not at all, never over an existing file."""

import os
import tempfile
from functools import lru_cache
from pathlib import Path

from ..run_folder import require_writable
from ..trainers.figures import new_figure, require_matplotlib


__all__ = [
    "check_output",
    "finish",
    "new_figure",
    "own_axes",
    "require_matplotlib",
    "save_figure",
    "shown_text",
    "write_new",
]
SUFFIXES = (".png", ".pdf", ".svg")


def own_axes(ax, width: float, height: float, **options):
    """(figure, ax): those of ``ax``, or of a new figure where it is None."""
    if ax is not None:
        return ax.figure, ax
    figure = new_figure(width, height)
    return figure, figure.add_subplot(**options)


def finish(figure, path=None):
    """``figure``, also written to ``path`` where one is given."""
    if path is not None:
        save_figure(figure, path)
    return figure


def check_output(path: str | os.PathLike, suffixes: tuple[str, ...] = SUFFIXES, option: str = "path") -> None:
    """Refuses a file that cannot be written, before any work.

    Raises:
        ValueError: another suffix than ``suffixes``.
        FileExistsError, NotADirectoryError, PermissionError: ``option`` is how the user spells it.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{option}={path} must end in {' or '.join(suffixes)}.")
    if os.path.lexists(path):
        raise FileExistsError(f"{option}={path} exists; choose another file or remove it first.")
    require_writable(path, option)


def save_figure(figure, path: str | os.PathLike, dpi: int = 150) -> Path:
    """Writes ``figure`` to the new file ``path`` in the format of its suffix; see `check_output` for what is refused."""
    check_output(path)
    return write_new(path, lambda temporary: figure.savefig(temporary, dpi=dpi))


def write_new(path: str | os.PathLike, write) -> Path:
    """``write(temporary path of the same suffix)``, then the file appears at ``path`` at once.

    Raises:
        FileExistsError: somebody else wrote ``path`` meanwhile; theirs is kept.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder) / f"figure{path.suffix}"
        write(temporary)
        if os.path.lexists(path):
            raise FileExistsError(f"path={path} exists; choose another file or remove it first.")
        os.replace(temporary, path)
    return path


def shown_text(text: str) -> str:
    """``text`` as matplotlib draws it letter by letter: no mathematics, characters that its font lacks as escapes."""
    known = _characters()
    text = "".join(c if c == "\n" or ord(c) in known else c.encode("unicode_escape").decode() for c in text)
    return text.replace("$", r"\$")


@lru_cache(maxsize=1)
def _characters():
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties())).get_charmap())
