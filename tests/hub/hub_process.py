"""Scripts of this folder in processes of their own, and what they print."""

import json
import os
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]


def run_script(name, *arguments, timeout=600, **environment):
    """The JSON that ``tests/hub/<name>`` prints last."""
    command, variables = script(name, *arguments, **environment)
    result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=timeout, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


def script(name, *arguments, **environment):
    """Command line and environment of a script."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return [sys.executable, str(Path(__file__).parent / name), *map(str, arguments)], variables
