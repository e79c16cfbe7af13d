"""Makes the notebooks from their sources ``notebooks/NAME.py`` (cells begin with ``# %%``), executed, with their outputs.

    python scripts/execute_notebooks.py [NAME ...]

Minutes on a laptop CPU. What a library writes to stderr (progress bars, warnings with paths) is left out of the outputs.
"""

import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode, v4


ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
CELL = re.compile(r"^# %%( \[markdown\])?\n(.*?)(?=^# %%|\Z)", re.MULTILINE | re.DOTALL)
TIMEOUT = 1800  # seconds per cell


def source_cells(path: Path) -> list[NotebookNode]:
    """The cells of a source file, without outputs; the comment signs of Markdown cells are taken off."""
    cells = []
    for match in CELL.finditer(path.read_text(encoding="utf-8")):
        text = match[2].strip()
        if match[1]:
            lines = (line.removeprefix("#").removeprefix(" ") for line in text.splitlines())
            cells.append(v4.new_markdown_cell("\n".join(lines)))
        else:
            cells.append(v4.new_code_cell(text))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"  # the same each time
    return cells


def executed(path: Path) -> NotebookNode:
    """The notebook of a source file, run from top to bottom in a temporary folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = v4.new_notebook(cells=source_cells(path), metadata={"kernelspec": kernel})
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="hf_elm_notebook_") as place:
        options = {"timeout": TIMEOUT, "kernel_name": "python3", "record_timing": False}
        client = NotebookClient(notebook, resources={"metadata": {"path": place}}, **options)
        client.execute(env=environment)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.validate(notebook)
    return notebook


def main(names: list[str]) -> None:
    """Executes and writes the named notebooks, or all of them."""
    for path in [FOLDER / f"{name}.py" for name in names] or sorted(FOLDER.glob("*.py")):
        nbformat.write(executed(path), path.with_suffix(".ipynb"))
        sys.stdout.write(f"{path.with_suffix('.ipynb').relative_to(ROOT)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
