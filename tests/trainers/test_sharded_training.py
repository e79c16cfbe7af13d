"""FSDP2 on two CPU ranks: losses and the saved model are those of one process, for every family."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.trainers.sharded_run import FAMILIES, train
from tests.trainers.test_two_family_processes import largest_difference, worst_ratio


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    ranks = subprocess.run(
        [*command, str(Path(__file__).with_name("sharded_run.py")), str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=170,
        cwd=folder,
        check=False,
    )
    assert ranks.returncode == 0, ranks.stderr[-3000:]
    return folder


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", FAMILIES)
def test_sharded_training_equals_one_process(name, two_ranks):
    """After 20 AdamW steps in float64; the consolidated checkpoint is read by `from_pretrained`."""
    make, _ = FAMILIES[name]
    model = make()
    start = {key: value.clone() for key, value in model.state_dict().items()}
    losses = train(model, name)
    loaded = type(model).from_pretrained(two_ranks / name, dtype=torch.float64)
    differences = {
        "losses": worst_ratio(torch.load(two_ranks / "losses.pt", weights_only=True)[name], losses),
        "weights": largest_difference(loaded.state_dict(), model.state_dict()),
    }
    print(name, differences)  # noqa: T201
    assert max(differences.values()) <= 1e-5, differences
    assert largest_difference(start, model.state_dict()) > 1e-3, "something was learnt"
    assert losses[-1] < losses[0]
