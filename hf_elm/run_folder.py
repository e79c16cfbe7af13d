"""A run's output folder: claimed before anything is computed, written atomically, never silently overwritten."""

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml import YAMLError


RECIPE, ENVIRONMENT, METRICS, LIKELIHOOD = "recipe.yaml", "environment.json", "metrics.jsonl", "likelihood.json"
RETRIEVAL = "retrieval.json"


def write_atomically(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` whole or not at all: a full disk or a crash leaves the old file as it was."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            error.filename = str(path)  # not the temporary file's name, or none at all
        raise


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2, sort_keys=False) + "\n")


@contextlib.contextmanager
def new_folder(out: str | Path, option: str) -> Iterator[Path]:
    """A temporary folder that becomes ``out`` when the block ends well and vanishes when it does not.

    Raises:
        FileExistsError: ``out`` exists and is not an empty folder; ``option`` is how the user spells it.
    """
    require_empty(out, option)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        yield staging
        os.chmod(staging, 0o777 & ~_umask())
        os.replace(staging, out)  # an empty folder is replaced, anything else refused
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def require_empty(out: str | Path, option: str) -> None:
    """Refuse a path that is a file or a folder with anything in it.

    Raises:
        FileExistsError: naming ``option``, the path and the remedy.
    """
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise FileExistsError(f"{option}={out} exists and is not empty; choose another folder or remove it first.")
    require_writable(out, option)


def require_writable(path: str | Path, option: str) -> None:
    """Refuse a path that cannot be created: one below a file, or where nothing may be written.

    Raises:
        NotADirectoryError, PermissionError: naming ``option``, the path and the folder in the way.
    """
    nearest = next(folder for folder in (Path(path).absolute(), *Path(path).absolute().parents) if folder.exists())
    if nearest != Path(path).absolute() and not nearest.is_dir():
        raise NotADirectoryError(f"{option}={path} lies below {nearest}, which is a file; choose another place.")
    if not os.access(nearest, os.W_OK):
        raise PermissionError(f"{option}={path} cannot be written: no permission in {nearest}; choose another place.")


def is_main_process() -> bool:
    """Whether this process is the one that writes: rank 0 under torchrun and Accelerate, ordinal 0 on XLA devices."""
    if (
        "RANK" not in os.environ and "torch_xla" in sys.modules
    ):  # its processes are forked, without an environment of their own
        import torch_xla.runtime

        return torch_xla.runtime.global_ordinal() == 0
    return int(os.environ.get("RANK", "0")) == 0


def claim(output_dir: str | Path, settings: dict[str, Any], resume: bool) -> None:
    """Check that ``output_dir`` may be used by the run of ``settings``; writes nothing.

    Free are: a folder that does not exist, is empty or holds only the recipe of a run that ended before its first log, and,
    with ``resume``, the folder of a run with the same recipe.

    Raises:
        FileExistsError: the folder holds something else, or the same run and ``resume`` was not asked for.
        NotADirectoryError, PermissionError: it cannot be created.
        ValueError: ``resume`` with another recipe than the folder's own; the first differing key is named.
    """
    folder = Path(output_dir)
    if folder.is_file():
        raise FileExistsError(f"output_dir={folder} is a file; choose another output_dir.")
    require_writable(folder, "output_dir")
    if not folder.is_dir() or {path.name for path in folder.iterdir()} <= {RECIPE, ENVIRONMENT}:
        return
    recipe = folder / RECIPE
    if not recipe.is_file():
        raise FileExistsError(f"output_dir={folder} is not empty and holds no run of ours; choose another output_dir.")
    difference = first_difference(_read_recipe(recipe), comparable(settings))
    if difference and resume:
        raise ValueError(
            f"resume=true, but the run in output_dir={folder} has another recipe: {difference}. "
            f"Give the same settings (its {RECIPE} has them all) or choose another output_dir."
        )
    if difference:
        raise FileExistsError(f"output_dir={folder} holds another run ({difference}); choose another output_dir.")
    if not resume:
        raise FileExistsError(
            f"output_dir={folder} already holds this run; continue it with resume=true or choose another output_dir."
        )


def comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide a run's outcome, in the form that YAML gives back: without ``resume`` and the folder's name."""
    return _outcome(yaml.safe_load(dump_recipe(settings)))


def _outcome(settings):
    kept = {key: value for key, value in settings.items() if key != "resume"}
    if isinstance(kept.get("train"), dict):
        kept["train"] = {key: value for key, value in kept["train"].items() if key != "output_dir"}
    return kept


def dump_recipe(settings: dict[str, Any]) -> str:
    """Settings as YAML text."""
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def _read_recipe(path):
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError, RecursionError) as error:
        content = error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: {content}; restore it, or choose another output_dir.")
    return _outcome(content)


def first_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str | None:
    """``"train.max_steps is 10 there and 20 here"`` for the first differing key; None where all are equal."""
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            if difference := first_difference(before, now, f"{prefix}{key}."):
                return difference
        elif before != now:
            return f"{prefix}{key} is {before!r} there and {now!r} here"
    return None
