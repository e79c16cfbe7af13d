"""The FSDP2 example on two CPU ranks: it learns, and what it saves loads in one process."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_elm.modeling.monarc import MonArcForCausalLM


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.multiprocess
def test_the_example_learns_and_saves_a_whole_model(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = [str(ROOT / "examples" / "fsdp2_training.py"), "--output_dir", str(tmp_path / "out"), "--smoke"]
    done = subprocess.run(
        [*command, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=170,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [float(value) for value in re.findall(r"step \d+: ([\d.]+) nats/token", done.stdout)]
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.5
    model = MonArcForCausalLM.from_pretrained(tmp_path / "out")
    rows = (torch.arange(4)[:, None] * 11 + torch.arange(64)) % 256
    assert model(rows, labels=rows).lm_loss < losses[0] - 0.5
