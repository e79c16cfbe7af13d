"""What a folder would put on the Hub, and what may not go there: pickles, links, paths that lead out of it, foreign code.

Nothing is loaded or run: files are listed, JSON is read, code is parsed.
"""

import ast
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from .families import family_of_checkpoint


PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
SHIPPED_IMPORTS = frozenset({"torch", "transformers", *sys.stdlib_module_names})
_LEFT_OUT = re.compile(r"(^|/)(\.(?!gitattributes$)|__pycache__(/|$))")  # hidden files, caches
_RUN_FILES = ("recipe.yaml", "trainer_state.json", "training_args.bin", "optimizer.pt")
_CLASS = re.compile(r"(\w+)\.(\w+)")
_INDEX = "model.safetensors.index.json"
REMEDY = "`hf-elm convert FAMILY SOURCE OUT` writes the weights of an original checkpoint as safetensors"


@dataclass(frozen=True)
class HubFile:
    """A file by its path in the repository, with its size in bytes."""

    name: str
    path: Path
    size: int


def is_run_folder(folder: str | Path) -> bool:
    """Whether a training run wrote it (a run's folder or a checkpoint), so that it holds more than the model."""
    folder = Path(folder)
    return any((folder / name).exists() for name in _RUN_FILES) or any(folder.glob("checkpoint-*/"))


def pickled_weights(folder: str | Path) -> list[str]:
    """Names of the pickled weights in ``folder`` where it has no safetensors; nothing for Hub ids."""
    folder = Path(folder)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return []
    own = {"training_args.bin", "optimizer.pt", "scheduler.pt"}
    return sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES and path.name not in own)


def refuse_pickled_weights(folder: str | Path, option: str) -> None:
    """Raise a ValueError with the remedy where the only weights in ``folder`` are pickles; nothing is opened."""
    if names := pickled_weights(folder):
        raise ValueError(
            f"{option}={folder} holds no safetensors, only {', '.join(names)}: pickles, which run code when they are loaded. "
            f"{REMEDY}."
        )


def refuse_link(folder: Path, path: Path) -> None:
    """Raise a ValueError where ``path`` in ``folder`` is a link: what it leads to would be published."""
    if path.is_symlink():
        raise ValueError(
            f"DIR={folder} holds the link {path.relative_to(folder)} -> {os.readlink(path)}, which may lead out of the folder; put "
            "the file itself there (cp -L)."
        )


def hub_files(folder: str | Path) -> list[HubFile]:
    """The files that would be published, by name; hidden files and caches are left out.

    Raises:
        ValueError: a link. The file that it leads to would be published.
    """
    folder = Path(folder)
    files = []
    for root, folders, names in os.walk(folder):
        for name in sorted(folders + names):
            path = Path(root, name)
            inside = path.relative_to(folder).as_posix()
            if not _LEFT_OUT.search(inside):
                refuse_link(folder, path)
        folders[:] = sorted(name for name in folders if not _LEFT_OUT.search(name))
        for name in names:
            path = Path(root, name)
            inside = path.relative_to(folder).as_posix()
            if not _LEFT_OUT.search(inside):
                files.append(HubFile(inside, path, path.stat().st_size))
    return sorted(files, key=lambda file: file.name)


def check_contents(folder: str | Path) -> list[HubFile]:
    """The files of a self-contained model folder.

    Raises:
        FileNotFoundError: no folder, no config.json.
        ValueError: another kind of model, pickles, links, no weights, a path in a JSON file that leads out of the folder,
            code that is missing or imports what a Hub folder cannot.
    """
    folder = Path(folder)
    family_of_checkpoint(str(folder))
    files = hub_files(folder)
    refuse_pickled_weights(folder, "DIR")
    if pickles := [file.name for file in files if Path(file.name).suffix in PICKLES]:
        raise ValueError(
            f"DIR={folder} holds {', '.join(pickles)}: pickles, which run code when they are loaded, are not published; remove "
            f"them. {REMEDY}."
        )
    _check_weights(folder, {file.name for file in files})
    _check_modules(folder)
    for name, classes in _auto_maps(folder):
        _check_code(folder, name, classes)
    return files


def _read(path):
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from None
    return content


def _check_weights(folder: Path, names: set[str]) -> None:
    if not (folder / _INDEX).is_file():
        if "model.safetensors" not in names:
            raise ValueError(
                f"DIR={folder} has no model.safetensors; give a folder that save_pretrained wrote. {REMEDY}."
            )
        return
    content = _read(folder / _INDEX)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    shards = {str(shard) for shard in weight_map.values()} if isinstance(weight_map, dict) else set()
    for shard in sorted(shards):
        if shard not in names or "/" in shard or not shard.endswith(".safetensors"):
            raise ValueError(f'DIR={folder}: {_INDEX} names "{shard}", which is no safetensors file of the folder.')
    if not shards:
        raise ValueError(f"DIR={folder}: {_INDEX} names no weights.")


def _check_modules(folder: Path) -> None:
    """Of sentence-transformers: each module is a folder inside."""
    path = folder / "modules.json"
    modules = _read(path) if path.is_file() else []
    for module in modules if isinstance(modules, list) else [modules]:
        place = module.get("path", "") if isinstance(module, dict) else None
        if not isinstance(place, str) or not (folder / place).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f'DIR={folder}: modules.json names the path "{place}", which is not inside the folder.')


def _auto_maps(folder: Path):
    """(file, classes) of every auto_map."""
    for name in ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        content = _read(folder / name) if (folder / name).is_file() else {}
        auto_map = content.get("auto_map") if isinstance(content, dict) else None
        if isinstance(auto_map, dict):
            values = [value if isinstance(value, (list, tuple)) else [value] for value in auto_map.values()]
            yield name, [entry for value in values for entry in value if entry is not None]
        elif name == "config.json":
            raise ValueError(
                f"DIR={folder}: config.json has no auto_map, so that nobody can load the model without hf_elm; write the folder "
                "with `hf-elm export`."
            )


def _check_code(folder: Path, origin: str, classes: list[str]) -> None:
    waiting = []
    for entry in classes:
        found = _CLASS.fullmatch(str(entry))
        if found is None:
            raise ValueError(
                f'DIR={folder}: auto_map in {origin} names "{entry}", which is no class of a file in the folder; code of another '
                "repository or folder is not published. Write the folder with `hf-elm export`."
            )
        waiting.append(found.group(1))
    seen: set[str] = set()
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += shipped_imports(folder / f"{module}.py")


def shipped_imports(path: Path) -> list[str]:
    """The siblings that the code file ``path`` of a Hub folder imports.

    Raises:
        ValueError: it is not there, is not Python, or imports more than torch, transformers, the standard library and siblings.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path.parent} lacks {path.name}, which its code needs; write it with `hf-elm export`."
        ) from None
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not Python: {error}.") from None
    siblings = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        elif isinstance(node, ast.ImportFrom):
            if node.level > 1 or not node.module or "." in node.module:
                raise ValueError(f"{path}, line {node.lineno}: only `from .file import name` works in a Hub folder.")
            siblings.append(node.module)
            continue
        else:
            continue
        for name in names:
            if name.split(".")[0] not in SHIPPED_IMPORTS:
                raise ValueError(
                    f"{path}, line {node.lineno} imports {name}; the code of a Hub folder imports torch, transformers, the "
                    "standard library and the files beside it."
                )
    return siblings
