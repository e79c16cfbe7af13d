"""What a run says of its cost, read from the files it left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .run_folder import METRICS


STATE = "trainer_state.json"


def spent_compute(checkpoint: str) -> dict[str, Any]:
    """Steps, tokens seen, floating-point operations and seconds of the training that wrote a folder, where its files tell.

    ``trainer_state.json`` of the folder or of its last checkpoint, and ``metrics.jsonl`` of the run; an empty dict for Hub ids
    and folders without them. ``train_seconds`` is wall-clock time of the last training call, ``cpu_seconds`` of its process
    where it was written.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return {}
    spent: dict[str, Any] = {}
    lines = _metrics(folder)
    for line in lines:
        spent |= {name: line[name] for name in ("cpu_seconds", "train_seconds") if line.get(name) is not None}
        if line.get("train_runtime") is not None:
            spent["train_seconds"] = line["train_runtime"]
        if line.get("total_flos") is not None:
            spent["flos"] = line["total_flos"]
        if line.get("tokens_seen"):
            spent["tokens_seen"] = line["tokens_seen"]
        if line.get("step"):
            spent["steps"] = line["step"]
    state = _state(folder)
    if state.get("global_step"):
        spent["steps"] = state["global_step"]
    if state.get("num_input_tokens_seen"):
        spent["tokens_seen"] = state["num_input_tokens_seen"]
    if state.get("total_flos"):
        spent.setdefault("flos", state["total_flos"])
    return spent


def _metrics(folder: Path) -> list[dict[str, Any]]:
    """The run's log up to the folder's own step; the log of a checkpoint folder is its parent's."""
    own = _state(folder).get("global_step")
    for place in (folder, folder.resolve().parent):
        if (place / METRICS).is_file():
            records = map(_parsed, (place / METRICS).read_text(encoding="utf-8", errors="replace").splitlines())
            return [each for each in records if place == folder or own is None or (each.get("step") or 0) <= own]
    return []


def _parsed(line) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # cut off by a kill
        return {}
    if not isinstance(record, dict):
        return {}
    return {
        name: value for name, value in record.items() if isinstance(value, (int, float))
    }  # what is told is numbers


def _state(folder: Path) -> dict[str, Any]:
    numbered = [path for path in folder.glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    latest = sorted(numbered, key=lambda path: int(path.name.split("-")[-1]))[-1:]
    for place in (folder, *latest):
        if (place / STATE).is_file():
            return _parsed((place / STATE).read_text(encoding="utf-8", errors="replace"))
    return {}
