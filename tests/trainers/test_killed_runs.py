"""SIGKILL at any moment costs the steps since the last checkpoint, and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.trainers.killed_run import train


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("kills", "steps", "kind"),
    [(3, 20, "streamed"), pytest.param(50, 150, "streamed", marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
def test_a_killed_run_ends_as_the_uninterrupted_one(tmp_path, kills, steps, kind):
    """Weights bit for bit, and a log of each step once."""
    command = [sys.executable, "-m", "tests.trainers.killed_run", tmp_path / "killed", str(kills), str(steps), kind]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout)
    (tmp_path / "counts.json").write_text(result.stdout)
    assert counts["kills"] == kills, "the run ended too early; give it more steps"
    assert counts["resumed_from"] == sorted(counts["resumed_from"])
    assert counts["resumed_from"][-1] > 0, "it went on from a checkpoint"
    if kills >= 50:
        assert counts["while_saving"] >= 10
    train(tmp_path / "whole", steps, kind == "streamed", None)
    killed, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole"))
    assert {name: value.numpy().tobytes() for name, value in killed.items()} == {
        name: value.numpy().tobytes() for name, value in whole.items()
    }
    logs = {name: logged(tmp_path / name) for name in ("killed", "whole")}
    assert logs["killed"] == logs["whole"]
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    ), "no leftovers"


def logged(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["tokens_seen"]) for line in lines if "loss" in line]
