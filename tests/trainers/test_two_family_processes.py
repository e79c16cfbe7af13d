"""After 20 AdamW steps: two processes equal one, and 8 rows x 1 equal 4 x 2 (gradient accumulation), for every trainer.

Differences are relative to the largest weight of a tensor. Models are float64 (see `two_rank_family_run`); metrics, and so the
logged losses, are summed in float32.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.trainers.two_rank_family_run import TRAINERS, run


ROOT = Path(__file__).resolve().parents[2]


def largest_difference(ours, theirs):
    """max over tensors of max |a - b| / max |b|."""
    assert ours.keys() == theirs.keys()
    pairs = [(value.double(), theirs[name].double()) for name, value in ours.items() if value.is_floating_point()]
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-3)).item() for a, b in pairs)


def worst_ratio(ours, theirs):
    return max(abs(a - b) / max(abs(b), 1e-6) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    ranks = subprocess.run(
        [*command, str(Path(__file__).with_name("two_rank_family_run.py")), str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=170,
        cwd=folder,
        check=False,
    )
    assert ranks.returncode == 0, ranks.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", TRAINERS)
def test_two_gloo_processes_equal_one(name, two_ranks, tmp_path):
    first, second = (ranks[name] for ranks in two_ranks)
    one = run(name, tmp_path, batch=8, accumulation=1)
    assert largest_difference(first["weights"], second["weights"]) == 0
    differences = {
        "weights": largest_difference(first["weights"], one["weights"]),
        "losses": worst_ratio(first["losses"], one["losses"]),
        "grad_norms": worst_ratio(first["grad_norms"], one["grad_norms"]),
    }
    print(name, differences)  # noqa: T201
    assert max(differences.values()) <= 1e-5, differences


@pytest.mark.parametrize("name", TRAINERS)
def test_accumulation_is_the_same_step(name, tmp_path):
    """One step 8 x 1 = 4 x 2: loss and gradient norm."""
    whole = run(name, tmp_path / "whole", batch=8, accumulation=1, steps=1)
    halves = run(name, tmp_path / "halves", batch=4, accumulation=2, steps=1)
    assert worst_ratio(halves["losses"], whole["losses"]) <= 1e-6
    assert worst_ratio(halves["grad_norms"], whole["grad_norms"]) <= 1e-6
