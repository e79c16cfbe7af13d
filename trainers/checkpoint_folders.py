"""Checkpoint folders that are whole or not there: written all or nothing, and checked before a run resumes from them."""

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open


STATE_FILE = "trainer_state.json"  # the last file that transformers writes into a checkpoint


class CheckpointSaveError(OSError):
    """A checkpoint could not be written; older ones are as they were."""


def why_unusable(folder: str | Path) -> str | None:
    """What keeps a run from resuming from the checkpoint ``folder``, or None when it is whole.

    Reads headers only: a truncated file is found, a flipped bit is not.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return "there is no such folder"
    try:
        json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it has no {STATE_FILE}, which is written last: the save was interrupted"
    except ValueError:
        return f"{STATE_FILE} is not valid JSON"
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            return f"{file.name} is corrupt ({error})"
    for name in ("optimizer.pt", "scheduler.pt"):
        if (folder / name).exists() and not zipfile.is_zipfile(folder / name):
            return f"{name} is corrupt (its archive has no end)"
    return None


def last_usable_checkpoint(output_dir: str | Path) -> str | None:
    """The whole ``checkpoint-<step>`` folder of the highest step below ``output_dir``, or None."""
    found = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in Path(output_dir).glob("checkpoint-*")]
    by_step = sorted(((int(match[1]), path) for match, path in found if match), reverse=True)
    return next((str(path) for _, path in by_step if why_unusable(path) is None), None)


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
