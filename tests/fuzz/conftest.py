"""Fuzz runs: memory bounded, the number of cases reported."""

import sys

import pytest

from tests.fuzz.exploration import CASES, SECONDS, limited_memory
from tests.fuzz.oracle import OUTCOMES
from tests.fuzz.saved_runs import make_runs


@pytest.fixture(autouse=True, scope="module")
def bounded_memory():
    if not sys.platform.startswith("linux"):
        yield
        return
    with limited_memory():
        yield


def pytest_terminal_summary(terminalreporter):
    if CASES:
        kinds = ", ".join(f"{kind} {count} ({SECONDS[kind]:.0f} s)" for kind, count in sorted(CASES.items()))
        terminalreporter.write_line(f"fuzz cases: {kinds}; {sum(CASES.values())} in all")
    for command in sorted({command for command, _ in OUTCOMES}):
        done, refused = OUTCOMES[command, 0], OUTCOMES[command, 2]
        terminalreporter.write_line(f"  hf-elm {command}: {done} done, {refused} refused")


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Tiny saved runs, to be copied before they are changed."""
    return make_runs(tmp_path_factory.mktemp("saved"))
