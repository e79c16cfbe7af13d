import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.trainers.tiny_training import ragged_rows
from tests.trainers.two_rank_stream_run import trainer_of


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.multiprocess
def test_two_gloo_processes_share_a_stream_and_resume(tmp_path):
    """Each rank its own rows; SIGTERM to one of them stops both after the same step; one process cannot go on for two."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = Path(__file__).with_name("two_rank_stream_run.py")
    ranks = subprocess.run(
        [*command, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=150,
        cwd=tmp_path,
        check=False,
    )
    assert ranks.returncode == 0, ranks.stderr[-3000:]
    results = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]
    rows = ragged_rows(7)["input_ids"]
    for result, own in zip(results, (rows[:4], rows[4:]), strict=True):
        batches = result["batches"]
        assert [row for batch in batches["whole"] for row in batch] == [own[i % len(own)] for i in range(12)]
        assert result["status"] == 143
        assert batches["stopped"] == batches["whole"][:3]
        assert batches["resumed"] == batches["whole"][3:]
        for name, value in result["weights"]["whole"].items():
            assert torch.equal(result["weights"]["resumed"][name], value), name
    with pytest.raises(ValueError, match=r"world size\) of 2, this run has 1"):
        trainer_of(tmp_path / "cut").train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
