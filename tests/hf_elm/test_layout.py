"""The house rules that a parser can hold: import arrows, what the Hub's copier would misread, sizes, installability."""

import ast
import importlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"hf_elm": "hf_elm", "modeling": "hf_elm.modeling", "trainers": "hf_elm.trainers"}
FOLDERS |= {"model_cards": "hf_elm.model_cards"}
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MODELING = [path for path in SOURCES if path.is_relative_to(ROOT / "modeling")]
HUB_ALLOWED = {"torch", "transformers", *sys.stdlib_module_names}


def relative(path):
    return str(path.relative_to(ROOT))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join((FOLDERS[parts[0]], *parts[1:]))
    return name.removesuffix(".__init__")


def imports(path):
    """(level, module, names) of every import statement, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", [alias.name for alias in node.names]


@pytest.mark.parametrize("path", MODELING, ids=relative)
def test_modeling_imports_only_what_a_hub_folder_can(path):
    allowed = HUB_ALLOWED | ({"safetensors", "huggingface_hub"} if path.name.startswith("convert_") else set())
    for level, module, names in imports(path):
        if level == 0:
            assert module.split(".")[0] in allowed, f"{path}: {module}"
        else:  # the Hub's copier follows `from .file import name` and nothing else
            assert level == 1, f"{path}: {'.' * level}{module}"
            assert module, f"{path}: `from . import {', '.join(names)}` is not copied"
            assert "." not in module, f"{path}: .{module}"
            assert (path.parent / f"{module}.py").is_file(), f"{path}: .{module}"


@pytest.mark.parametrize("path", MODELING, ids=relative)
def test_modeling_has_no_text_that_the_hub_copier_takes_for_an_import(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    starts = {node.lineno for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if re.match(r"\s*(from\s+\.\S*\s+import|import\s+\.\S+)", line):
            assert number in starts, f"{path}:{number}: {line.strip()}"


def test_no_family_imports_another():
    families = {path.name for path in (ROOT / "modeling").iterdir() if path.is_dir()}
    for path in MODELING:
        own = path.relative_to(ROOT / "modeling").parts[0]
        for _, module, _ in imports(path):
            assert not (families - {own}) & set(module.split(".")), f"{path}: {module}"


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [("trainers", {"evaluation", "commands", "model_cards"}), ("model_cards", {"torch", "trainers", "modeling"})],
)
def test_arrows_point_one_way(folder, forbidden):
    for path in (ROOT / folder).rglob("*.py"):
        for level, module, names in imports(path):
            own = level > 0 or module.split(".")[0] == "hf_elm"
            parts = set(module.split(".")) | (set(names) if own else set())
            assert not forbidden & parts if own else module.split(".")[0] not in forbidden, f"{path}: {module}"


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name != "__main__.py"], ids=relative)
def test_every_module_imports(path):
    importlib.import_module(module_name(path))


def test_every_lazy_export_exists():
    for path in SOURCES:
        if path.name == "__init__.py":
            package = importlib.import_module(module_name(path))
            for name in getattr(package, "__all__", ()):
                assert getattr(package, name) is not None, f"{package.__name__}.{name}"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_file_is_longer_than_500_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


def test_no_module_is_called_utils():
    assert not [path for path in SOURCES if path.stem in {"utils", "helpers", "common", "misc"}]


PROBE = """
import sys
import hf_elm, hf_elm.trainers, hf_elm.modeling.monarc, hf_elm.model_cards, hf_elm.recipes
assert "torch" not in sys.modules and "transformers" not in sys.modules
print(hf_elm.__file__, hf_elm.trainers.__file__, hf_elm.recipes.bundled_recipes()["monarc_tiny"], sep="\\n")
"""


def probe(cwd, path=None):
    env = {"PYTHONPATH": str(path or ""), "PATH": "", "HOME": str(cwd)}
    flags = ["-P"] if path else []  # without the current directory: the installed tree alone
    command = [sys.executable, *flags, "-c", PROBE]
    result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_mapped_packages_import_from_the_checkout():
    assert all(Path(file).is_relative_to(ROOT) for file in probe(ROOT))


@pytest.mark.slow
def test_mapped_packages_import_from_an_installed_wheel(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", tmp_path / "wheel", ROOT], check=True, timeout=170)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in [*SOURCES, *(ROOT / "recipes").glob("*.yaml")]:
        top, *rest = path.relative_to(ROOT).parts
        inside = {"recipes": "hf_elm.recipe_files", **FOLDERS}[top].replace(".", "/")
        assert "/".join((inside, *rest)) in names
    assert {name.split("/")[0] for name in names} <= {"hf_elm", "hf_elm-0.1.0.dist-info"}  # no global name is claimed
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    assert all(Path(file).is_relative_to(tmp_path / "site") for file in probe(tmp_path, tmp_path / "site"))
