"""What a case may do: succeed, or refuse in one clear line; and in either case keep every file that was there."""

import contextlib
import hashlib
import io
import logging
import os
import shutil
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import hf_elm
from hf_elm.command_line import COMMANDS, main


ROOT = Path(hf_elm.__file__).resolve().parents[1]
OURS = [ROOT / name for name in ("hf_elm", "modeling", "trainers", "model_cards")]
REFUSALS = (
    ValueError,
    TypeError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    PermissionError,
    ImportError,
)
OUTCOMES: Counter = Counter()  # command, status -> cases
LONGEST_LINE = 4000  # characters of an error, which is to be read


class CaseFolder:
    """A folder of one case, current while it lasts; home and temporary files are in it too."""

    def __init__(self, root: Path):
        self.root, self.before = root, {}

    def __truediv__(self, name: str) -> Path:
        return self.root / name

    def remember(self) -> None:
        """From here on nothing may be lost."""
        self.before = contents(self.root)

    def assert_kept(self, also_nothing_new: bool) -> None:
        """Names and SHA-256 of what was there are as they were; after a refusal there is nothing else either."""
        after = contents(self.root)
        lost = [name for name, digest in self.before.items() if after.get(name) != digest]
        assert not lost, f"lost or changed: {lost}"
        new = sorted(after.keys() - self.before.keys())
        assert not also_nothing_new or not new, f"left behind by a refusal: {new}"
        temporary = [name for name in new if Path(name).name.startswith(".") or name.startswith("tmp/")]
        assert not temporary, f"temporary files left behind: {temporary}"


def contents(root: Path) -> dict[str, str]:
    """Relative name -> SHA-256 (of a link: its target) of everything below ``root``; folders too."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            if name.startswith("torchinductor_") or {".cache", ".config"} & {*path.relative_to(root).parts}:
                continue  # of torch's compiler and of matplotlib's fonts, which the home is a place for
            key = os.path.relpath(path, root)
            if path.is_symlink():
                found[key] = f"link to {os.readlink(path)}"
            elif path.is_dir():
                found[key] = "folder"
            elif path.is_file():
                found[key] = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                found[key] = "special"
    return found


@contextlib.contextmanager
def case_folder() -> Iterator[CaseFolder]:
    """A fresh folder below which the case lives, three levels deep, so that ``../..`` stays inside what is watched."""
    outer = Path(tempfile.mkdtemp(prefix="hf_elm_fuzz_"))
    inner = outer / "a" / "b"
    (inner / "tmp").mkdir(parents=True)
    (outer / "kept.txt").write_text("of the user, outside the case\n")
    outside, home, temporary = os.getcwd(), os.environ.get("HOME"), tempfile.tempdir
    os.chdir(inner)
    os.environ["HOME"], tempfile.tempdir = str(inner), str(inner / "tmp")
    folder = CaseFolder(inner)
    try:
        yield folder
        assert (outer / "kept.txt").read_text() == "of the user, outside the case\n"
        assert {path.name for path in outer.iterdir()} | {path.name for path in (outer / "a").iterdir()} == {
            "kept.txt",
            "a",
            "b",
        }
    finally:
        os.chdir(outside)
        tempfile.tempdir = temporary
        if home is None:
            del os.environ["HOME"]
        else:
            os.environ["HOME"] = home
        shutil.rmtree(outer, ignore_errors=True)


def run_command(folder: CaseFolder, arguments: list[str], names: Iterable[str] = (), goes_on: bool = False) -> int:
    """Run ``hf-elm`` in this process and hold it to the rules; its status.

    Args:
        names: what a refusal may name; one of them must stand in it.
        goes_on: it is to write to a folder that is there, where it succeeds.
    """
    folder.remember()
    status, error = run_quietly(arguments)
    assert "Traceback" not in error, f"{arguments}:\n{error[-3000:]}"
    assert status in (0, 2), f"status {status} of {arguments}:\n{error[-3000:]}"
    lines = [line for line in error.splitlines() if line.startswith("hf-elm")]
    if status == 2:
        assert len(lines) == 1, f"{arguments}: {error[-3000:]}"
        assert_clear(lines[0].partition("error: ")[2], names, arguments)
    OUTCOMES[arguments[0] if arguments[0] in COMMANDS else "no command", status] += 1
    if status == 2 or not goes_on:
        folder.assert_kept(also_nothing_new=status == 2)
    return status


def run_quietly(arguments: list[str]) -> tuple[int, str]:
    """Status and standard error of ``hf-elm`` with ``arguments``."""
    error = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            status = main(arguments)
        finally:
            logging.disable(logging.NOTSET)
    return status, error.getvalue()


def assert_clear(message: str, names: Iterable[str], case) -> None:
    """One line of bearable length that names what is wrong."""
    names = [str(name) for name in names]
    assert message.strip(), f"{case}: an empty message"
    assert len(message) <= LONGEST_LINE, f"{case}: {len(message)} characters: {message[:500]}"
    assert not names or any(name in message for name in names), f"{case}: names none of {names}: {message}"


def refused(action, names: Iterable[str], case) -> str | None:
    """None where ``action()`` succeeds, else the message of a refusal by our own code that names one of ``names``.

    Any other exception passes through and fails the test.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            action()
    except REFUSALS as caught:
        error = caught
    else:
        return None
    last = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    if not any(last.is_relative_to(root) for root in OURS):
        raise error
    assert_clear(str(error), names, case)
    return str(error)
