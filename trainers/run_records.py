"""What a run writes down: means of metrics over steps and ranks, throughput, peak memory, and `metrics.jsonl`."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import TrainerCallback


class MetricWindow:
    """Sums of metrics since `clear`, kept on the device: adding never waits for it.

    Attributes:
        steps: optimizer steps in the window.
    """

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        """Forget everything and start the clock."""
        self.steps = 0
        self._sums: dict[str, Tensor] = {}
        self._tokens: Tensor | None = None
        self._started = time.perf_counter()

    def add(self, metrics: dict[str, Tensor], tokens: Tensor, finished_step: bool = False) -> None:
        """Adds scalars; ``tokens`` is the number of target tokens (of this rank) behind them."""
        for name, value in metrics.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._tokens = tokens if self._tokens is None else self._tokens + tokens
        self.steps += finished_step

    @contextlib.contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Time spent inside (evaluating, saving) does not count."""
        since = time.perf_counter()
        yield
        self._started += time.perf_counter() - since

    def tokens(self, accelerator) -> int:
        """Target tokens of all ranks in the window. Collective."""
        return 0 if self._tokens is None else int(accelerator.reduce(self._tokens, "sum").item())

    def sums(self, accelerator) -> dict[str, float]:
        """Sums of the metrics over the window and all ranks. Collective."""
        if not self._sums:
            return {}
        totals = accelerator.reduce(torch.stack(list(self._sums.values())), "sum").tolist()
        return dict(zip(self._sums, totals, strict=True))

    def seconds(self) -> float:
        """Wall-clock seconds since `clear`, without the time the clock was stopped."""
        return time.perf_counter() - self._started


def peak_memory_mib(device: torch.device) -> float | None:
    """Peak memory of this process so far, MiB: allocated by tensors on a CUDA device, resident (RSS) elsewhere.

    None where the platform does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


class MetricsFile(TrainerCallback):
    """Appends every log to a file of JSON lines: ``step``, ``epoch``, ``tokens_seen`` and the logged values.

    Written by the main process, closed after each line. A resumed run drops the lines after its checkpoint's step, so that
    no step is there twice; a run that starts afresh starts an empty file. Values that are not finite become null.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._written = False

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero or not self.path.exists():
            return
        if state.global_step == 0 and self._written:
            return  # evaluated before training, by this very run
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if state.global_step and _step_of(line) <= state.global_step]
        rewritten = self.path.with_name(self.path.name + ".new")
        rewritten.write_text("".join(kept), encoding="utf-8")
        rewritten.replace(self.path)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        head = {"step": state.global_step, "epoch": state.epoch, "tokens_seen": state.num_input_tokens_seen}
        record = {key: _json_value(value) for key, value in (head | (logs or {})).items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._written = True


def _step_of(line):
    try:
        step = json.loads(line)["step"]
        return step if isinstance(step, (int, float)) else math.inf
    except (ValueError, KeyError, TypeError, RecursionError):  # cut off by a kill: drop it
        return math.inf


def _json_value(value):
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)
