"""Checkpoint folders that are whole or not there: written all or nothing, and checked before a run resumes from them."""

import errno
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open


STATE_FILE = "trainer_state.json"  # the last file that transformers writes into a checkpoint
FILE_LIST = "files.json"  # sizes of all files, written after it


class CheckpointSaveError(OSError):
    """A checkpoint could not be written; older ones are as they were."""


def why_unusable(folder: str | Path) -> str | None:
    """What keeps a run from resuming from the checkpoint ``folder``, or None when it is whole.

    Reads headers and sizes only: a missing or truncated file is found, a flipped bit is not.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return "there is no such folder"
    try:
        json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it has no {STATE_FILE}, which is written last: the save was interrupted"
    except (ValueError, RecursionError):
        return f"{STATE_FILE} is not valid JSON"
    except OSError as error:
        return f"{STATE_FILE} cannot be read ({error.strerror})"
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            return f"{file.name} is corrupt ({error})"
    for name in ("optimizer.pt", "scheduler.pt"):
        if (folder / name).exists() and not zipfile.is_zipfile(folder / name):
            return f"{name} is corrupt (its archive has no end)"
    return _missing_file(folder)


def write_file_list(folder: str | Path) -> None:
    """Records the names and sizes of the files of a checkpoint, so that a missing one is missed."""
    folder = Path(folder)
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != FILE_LIST)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    temporary = folder / f"{FILE_LIST}.new"
    temporary.write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / FILE_LIST)


def _missing_file(folder):
    """What does not agree with the file list; checkpoints without one are of other programs, or were killed just before it."""
    try:
        sizes = json.loads((folder / FILE_LIST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        weights = ("*.safetensors", "*.bin", "*.distcp", "global_step*")
        has_weights = any(next(folder.rglob(pattern), None) for pattern in weights)
        return None if has_weights else "it holds no weights"
    except (ValueError, RecursionError):
        return f"{FILE_LIST} is not valid JSON"
    except OSError as error:
        return f"{FILE_LIST} cannot be read ({error.strerror})"
    if not isinstance(sizes, dict):
        return f"{FILE_LIST} is no list of names and sizes"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} is corrupt ({path.stat().st_size} bytes instead of {size})"
    return None


def broken_checkpoints(output_dir: str | Path, newer_than: str | None = None) -> list[tuple[str, str]]:
    """Folder and reason of each ``checkpoint-<step>`` that cannot be used, of steps after that of ``newer_than``."""
    since = -1 if newer_than is None else _step(Path(newer_than))
    found = ((path, why_unusable(path)) for path in _by_step(output_dir) if _step(path) > since)
    return [(str(path), reason) for path, reason in found if reason is not None]


def require_writable(output_dir: str | Path) -> None:
    """Refuses a folder that no checkpoint can be written to, before there is work to lose.

    Raises:
        PermissionError: naming the folder.
    """
    folder = Path(output_dir)
    if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
        message = f"output_dir={folder} cannot be written (read-only, or no permission); choose another output_dir"
        raise PermissionError(errno.EACCES, message)


def clear_leftovers(output_dir: str | Path) -> None:
    """Removes what a killed process left while it was saving, and puts a checkpoint back that it had set aside."""
    for aside in Path(output_dir).glob("replaced-checkpoint-*"):
        folder = aside.with_name(aside.name.removeprefix("replaced-"))
        if why_unusable(folder) is not None and why_unusable(aside) is None:
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)
    for staging in (*Path(output_dir).glob(".saving-*"), *Path(output_dir).glob("checkpoint-*/.saving-*")):
        shutil.rmtree(staging, ignore_errors=True)


def last_usable_checkpoint(output_dir: str | Path) -> str | None:
    """The whole ``checkpoint-<step>`` folder of the highest step below ``output_dir``, or None."""
    return next((str(path) for path in _by_step(output_dir) if why_unusable(path) is None), None)


def _by_step(output_dir):
    """The ``checkpoint-<step>`` folders below ``output_dir``, the highest step first."""
    folders = (path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name))
    return sorted(folders, key=_step, reverse=True)


def _step(folder):
    return int(folder.name.rpartition("-")[2])


@contextmanager
def written_whole(folder: str | Path) -> Iterator[None]:
    """While it lasts a checkpoint is written to ``folder``; if that fails, the folder is again what it was before.

    Raises:
        CheckpointSaveError: instead of the errors of a full or failing disk, with the cause attached.
    """
    folder = Path(folder)
    aside = folder.with_name(f"replaced-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.rename(aside)
    try:
        yield
    except BaseException as error:
        if why_unusable(folder) is None:  # whole on disk: something after the writing failed, an upload for example
            shutil.rmtree(aside, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        if aside.exists():
            aside.rename(folder)
        if isinstance(error, (OSError, RuntimeError, SafetensorError)):
            raise _save_error(folder, error) from error
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _save_error(folder, error):
    kept = last_usable_checkpoint(folder.parent)
    free = shutil.disk_usage(folder.parent).free / 2**20
    message = (
        f"{folder} could not be saved: {error}. What was half written is removed and "
        f"{f'the last good checkpoint is {kept}' if kept else 'there is no earlier checkpoint'}; {free:.0f} MiB are free there. "
        "Free some space or set save_total_limit, then resume with resume_from_checkpoint=True."
    )
    number = getattr(error, "errno", None)
    return CheckpointSaveError(message) if number is None else CheckpointSaveError(number, message)


@contextmanager
def staged(folder: str | Path) -> Iterator[str]:
    """A temporary folder whose files replace those of the same name in ``folder`` at the end, or are dropped on an error."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    try:
        yield str(staging)
        for path in list(staging.iterdir()):
            target = folder / path.name
            if path.is_dir():
                shutil.rmtree(target, ignore_errors=True)
            path.replace(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
