"""How many cases a fuzz test runs, what ends one that would not end by itself, and how failures are told.

The default suite runs a few cases of each kind, always the same ones; ``pytest -m slow tests/fuzz`` runs more than 2,000, of the
seed in ``HF_ELM_FUZZ_SEED`` (0 where it is not set). The number of cases by kind is printed at the end of either.

A case may use `CASE_CPU_SECONDS` of processor time, whatever the machine's load, and `MEMORY_BYTES` of memory beyond what the
process has at its start; a case that waits without computing is ended by pytest-timeout. A failing case does not end the run:
all cases are run, and of each place that failed the shortest case is shown.
"""

import contextlib
import os
import resource
import signal
import time
import traceback
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, example, given, seed, settings


CASE_CPU_SECONDS = 60
MEMORY_BYTES = 8 * 2**30
CASES: Counter = Counter()  # kind -> cases run
SECONDS: Counter = Counter()  # kind -> processor time
SEED = int(os.environ.get("HF_ELM_FUZZ_SEED", "0"))
CHECKS = [
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.large_base_example,
    HealthCheck.filter_too_much,
]


class CaseHangsError(BaseException):
    """A case has used its processor time; no `except Exception` of the code under test keeps it."""


def amounts(few: int, many: int):
    """Decorator: the test's argument ``amount`` is ``few`` by default and ``many`` among the slow tests."""
    slow = pytest.param(many, marks=[pytest.mark.slow, pytest.mark.timeout(3600)], id="slow")
    return pytest.mark.parametrize("amount", [pytest.param(few, marks=pytest.mark.timeout(600), id="few"), slow])


def explore(kind: str, check, amount: int, examples: tuple = (), **strategies) -> None:
    """Run ``check(**drawn)`` for each dict of ``examples`` and for ``amount`` draws of ``strategies``; fail with what failed."""
    failures: dict[tuple, tuple[str, str]] = {}

    def case(**drawn):
        CASES[kind] += 1
        began = time.process_time()
        try:
            with limited_case():
                check(**drawn)
        except (Exception, CaseHangsError) as error:
            shown, place = repr(drawn), _place(error)
            if place not in failures or len(shown) < len(failures[place][0]):
                failures[place] = (shown, "".join(traceback.format_exception(error, limit=-6))[-3000:])
        finally:
            SECONDS[kind] += time.process_time() - began

    case = given(**strategies)(case)
    for known in examples:
        case = example(**known)(case)
    case = seed(SEED)(case)
    options = {"database": None, "deadline": None, "suppress_health_check": CHECKS}
    settings(max_examples=amount, phases=[Phase.explicit, Phase.generate], **options)(case)()
    if failures:
        told = "\n\n".join(f"case {shown[:1500]}\n{story}" for shown, story in failures.values())
        pytest.fail(f"{len(failures)} places failed:\n\n{told}", pytrace=False)


def _place(error) -> tuple:
    """Where and how a case failed; the line of a printed traceback where it was the command line that failed."""
    frames = traceback.extract_tb(error.__traceback__)
    words = str(error).split()
    return type(error).__name__, frames[-1].filename, frames[-1].lineno, tuple(words[-12:-6]) if words else ()


@contextlib.contextmanager
def limited_case():
    """The limit on processor time; pytest-timeout has its own clock, so that the two do not meet."""

    def end(*_):
        raise CaseHangsError(f"the case has used {CASE_CPU_SECONDS} seconds of processor time")

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, CASE_CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def limited_memory():
    """What a size out of all proportion asks for is refused by the system, as on a small machine, and not swapped in."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
