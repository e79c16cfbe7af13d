import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tests.trainers.two_rank_run import run


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.multiprocess
def test_two_gloo_processes_equal_one(tmp_path, capsys):
    """2 processes x batch 2 x 2 accumulated = 1 process x batch 8: weights, logs and evaluation (5 rows: one is repeated).

    Float64 and SGD, so that the weights are as exact as the gradients. A value that is infinite on rank 1 only stops both.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = Path(__file__).with_name("two_rank_run.py")
    ranks = subprocess.run(
        [*command, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert ranks.returncode == 0, ranks.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in (0, 1))
    one = run(tmp_path / "one", batch=8, accumulation=1)
    assert_close(first["weights"], second["weights"], rtol=0, atol=0)
    assert_close(first["weights"], one["weights"], rtol=1e-10, atol=1e-12)
    assert first["tokens"] == one["tokens"]
    for ours, theirs in zip([*first["logs"], first["eval"]], [*one["logs"], one["eval"]], strict=True):
        names = [name for name in theirs if "loss" in name or "z_hat" in name or "energy" in name or "bound" in name]
        assert len(names) == 7
        for name in names:
            assert math.isclose(ours[name], theirs[name], rel_tol=1e-5), name  # sums are kept in float32
    assert first["stopped_at"] == second["stopped_at"] == (2, "energy_loss")
    assert (tmp_path / "two" / "metrics.jsonl").read_text().count("\n") == (
        tmp_path / "one" / "metrics.jsonl"
    ).read_text().count("\n")
