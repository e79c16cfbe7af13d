"""Two processes mask, train and evaluate as one."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tests.trainers.two_rank_masked_run import run


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.multiprocess
@pytest.mark.usefixtures("capsys")
def test_two_gloo_processes_equal_one(tmp_path):
    """2 processes x batch 2 x 2 accumulated = 1 process x batch 8; 5 held-out rows: one is repeated and not counted twice."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = Path(__file__).with_name("two_rank_masked_run.py")
    ranks = subprocess.run(
        [*command, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=150,
        cwd=tmp_path,
    )
    assert ranks.returncode == 0, ranks.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in (0, 1))
    one = run(tmp_path / "one", batch=8, accumulation=1)
    assert sorted(first["seen"] + second["seen"]) == sorted(one["seen"]), "the same rows are masked alike"
    assert not {labels for _, labels in first["seen"]} & {labels for _, labels in second["seen"] if labels}
    assert_close(first["weights"], second["weights"], rtol=0, atol=0)
    assert_close(first["weights"], one["weights"], rtol=1e-6, atol=1e-9)  # filters and transforms of float64 models
    assert first["tokens"] == one["tokens"]
    for ours, theirs in zip(first["logs"], one["logs"], strict=True):
        assert math.isclose(ours["loss"], theirs["loss"], rel_tol=1e-5)
        rates = [log["input_tokens_per_second"] / log["tokens_per_second"] for log in (ours, theirs)]
        assert math.isclose(*rates, rel_tol=1e-5)
    for name in ("eval_loss", "eval_masked_accuracy", "eval_unigram_entropy", "eval_masked_tokens"):
        assert math.isclose(first["eval"][name], one["eval"][name], rel_tol=1e-5), name
