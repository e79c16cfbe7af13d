"""Benchmark records: one JSON line per result, and alternating timings of two or more sides in one process."""

import json
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch
import transformers


RESULTS = Path(__file__).parent / "results"


def record(bench: str, **fields) -> dict:
    """Appends one line to ``results/<bench>.jsonl`` with versions, device, threads, commit and date, and prints it."""
    line = {"bench": bench, **fields, **environment()}
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / f"{bench}.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps({key: value for key, value in line.items() if key not in environment()}), flush=True)
    return line


def environment() -> dict:
    """Where a measurement was made."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu: {_cpu_name()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": _commit(),
        "date": date.today().isoformat(),
    }


def alternate(sides: dict, repeats: int, warmup: int = 1) -> dict[str, dict]:
    """CPU seconds of each callable, run in turn ``repeats`` times: p20, p50, p80 in ms, and the paired ratio to the first side.

    Alternation shares out whatever else the machine is doing; the ratio is the median over rounds, with its own p20 and p80.
    A side that returns a float has timed itself, in seconds.
    """
    for _ in range(warmup):
        for side in sides.values():
            side()
    times = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            start = time.process_time()
            elapsed = side()
            times[name].append(elapsed if isinstance(elapsed, float) else time.process_time() - start)
    base = next(iter(times.values()))
    return {
        name: {
            **quantiles([1e3 * t for t in series], ""),
            **quantiles([t / b for t, b in zip(series, base, strict=True)], "ratio_"),
            "n": repeats,
        }
        for name, series in times.items()
    }


def peak_memory_mib(code: str) -> float:
    """Growth of the peak resident memory of a fresh interpreter between the two ``mark()`` calls in ``code``, MiB (Linux).

    Read from VmHWM: ru_maxrss of a child starts at its parent's size.
    """
    mark = (
        "def mark():\n    lines = open('/proc/self/status').read().splitlines()\n"
        "    print('MARK', next(line.split()[1] for line in lines if line.startswith('VmHWM')), flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", mark + code], capture_output=True, text=True, check=True)
    first, last = (int(line.split()[1]) / 1024 for line in done.stdout.splitlines() if line.startswith("MARK"))
    return last - first


def quantiles(values, prefix):
    ordered = sorted(values)
    pick = lambda q: round(ordered[min(len(ordered) - 1, int(q * len(ordered)))], 4)  # noqa: E731
    return {f"{prefix}p20": pick(0.2), f"{prefix}p50": round(statistics.median(ordered), 4), f"{prefix}p80": pick(0.8)}


def _commit():
    def git(*args):
        return subprocess.run(["git", *args], capture_output=True, text=True, cwd=RESULTS.parent).stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "uncommitted") + (
        "+" if git("status", "--porcelain", "-uno") else ""
    )


def _cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
