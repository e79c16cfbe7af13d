"""The stored notebooks are those of their sources, executed without an error, and say nothing about the machine."""

import re

import pytest


nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")

from scripts.execute_notebooks import FOLDER, executed, source_cells  # noqa: E402


SOURCES = sorted(FOLDER.glob("*.py"))
LARGEST = 300_000  # bytes
OF_A_MACHINE = re.compile(r"/(?:work|root|home|tmp|usr|opt|Users)/|site-packages|[A-Z]:\\\\Users")


def stored(path):
    return nbformat.read(path.with_suffix(".ipynb"), as_version=4)


def test_there_are_two_and_each_has_its_source():
    assert len(SOURCES) == 2
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {path.stem for path in SOURCES}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_is_its_source_executed(path):
    notebook = stored(path)
    nbformat.validate(notebook)
    pairs = [(cell.cell_type, cell.source) for cell in notebook.cells]
    assert pairs == [(cell.cell_type, cell.source) for cell in source_cells(path)]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = [output.output_type for cell in code for output in cell.outputs]
    assert "error" not in kinds
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    assert path.with_suffix(".ipynb").stat().st_size < LARGEST


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_outputs_hold_no_path_of_a_machine(path):
    for cell in stored(path).cells:
        for output in cell.get("outputs", ()):
            shown = output.get("text") or "\n".join(str(value)[:100_000] for value in output.get("data", {}).values())
            text = shown if "image/png" not in output.get("data", {}) else output["data"].get("text/plain", "")
            assert not OF_A_MACHINE.search(text), text[:200]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_the_source_runs(path):
    code = [cell for cell in executed(path).cells if cell.cell_type == "code"]
    assert all(output.output_type != "error" for cell in code for output in cell.outputs)
