"""A JSONL file that is written in one piece at the end: until then its rows gather in a folder beside it, to be continued."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .run_folder import first_difference, require_writable, write_json


SETTINGS, ROWS = "settings.json", "rows.jsonl"


def check_rows_output(output: str | Path) -> Path:
    """The path of the file to write.

    Raises:
        ValueError: another suffix than .jsonl.
        FileExistsError, NotADirectoryError, PermissionError: it is there already, or cannot be created.
    """
    output = Path(output)
    if output.suffix != ".jsonl":
        raise ValueError(
            f'output={output} must end in .jsonl: one JSON object per line is written, got "{output.suffix}".'
        )
    if output.exists():
        raise FileExistsError(f"output={output} exists; choose another file or remove it first.")
    require_writable(output, "output")
    return output


class PartialRows:
    """Rows that are done, in the folder ``<output>.partial``, until `finish` makes the output of them.

    Args:
        output: the file to write.
        settings: whatever decides the rows, as JSON; an earlier run's rows are kept if its settings are the same.

    Attributes:
        done: rows there are.

    Raises:
        FileExistsError: the folder holds rows of other settings; the first that differs is named.
    """

    def __init__(self, output: Path, settings: dict[str, Any]):
        self.output, self.folder = Path(output), Path(f"{output}.partial")
        settings = json.loads(json.dumps(settings))
        if (self.folder / SETTINGS).is_file():
            self.done = self._resume(settings)
        else:
            self.done = self._start(settings)

    def _start(self, settings) -> int:
        if self.folder.exists() and not self._never_begun():
            raise FileExistsError(f"{self.folder} is in the way and holds no interrupted run; move it elsewhere.")
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / ROWS).write_bytes(b"")
        write_json(self.folder / SETTINGS, settings)  # last: a folder without it was never begun
        return 0

    def _never_begun(self) -> bool:
        return self.folder.is_dir() and all(
            path.name == ROWS and not path.stat().st_size for path in self.folder.iterdir()
        )

    def _resume(self, settings) -> int:
        remedy = f"give the same inputs and settings to continue it, or remove {self.folder} to start anew"
        try:
            old = json.loads((self.folder / SETTINGS).read_text(encoding="utf-8"))
            content = (self.folder / ROWS).read_bytes()
        except (OSError, ValueError) as error:
            raise FileExistsError(f"{self.folder} is damaged ({error}); remove it to start anew.") from None
        if difference := first_difference(old, settings):
            raise FileExistsError(f"{self.folder} holds an interrupted run that differs: {difference}; {remedy}.")
        os.truncate(self.folder / ROWS, content.rfind(b"\n") + 1)  # a row that was not written whole
        return content.count(b"\n")

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Adds rows for good."""
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        with open(self.folder / ROWS, "a", encoding="utf-8", errors="surrogatepass", newline="\n") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        self.done += len(lines)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows that are done, until `finish`."""
        with open(self.folder / ROWS, encoding="utf-8", errors="surrogatepass") as file:
            for line in file:
                yield json.loads(line)

    def finish(self) -> None:
        """Makes the output of the rows and removes the folder.

        Raises:
            FileExistsError: the output has been made meanwhile.
        """
        if self.output.exists():
            raise FileExistsError(
                f"output={self.output} has been made meanwhile; the rows are in {self.folder / ROWS}."
            )
        os.replace(self.folder / ROWS, self.output)
        shutil.rmtree(self.folder, ignore_errors=True)
