"""Seeded, bounded random inputs: the same ones in each run of the suite, more with `pytest --fuzz 20`."""

import contextlib
import os
import resource
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from hypothesis import HealthCheck, settings

from tinyldm.errors import UserError

GIB = 2**30


def bounded(examples: int) -> settings:
    """Hypothesis with a fixed seed and so many examples, times the option --fuzz."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    count = max(1, round(examples * float(os.environ.get("TINYLDM_FUZZ", "1"))))  # set by conftest.py
    return settings(max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=checks)


@contextlib.contextmanager
def at_most(gibibytes: float) -> Iterator[None]:
    """Allocations beyond this many more GiB than now raise MemoryError."""
    status = Path("/proc/self/status").read_text().splitlines()
    used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + int(gibibytes * GIB), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def one_line(call: Callable[[], object]) -> object:
    """What a call returns, or the message of its UserError, which must be one line. Other exceptions pass."""
    try:
        with at_most(2), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()
    except UserError as error:
        message = str(error)
        assert message and "\n" not in message and len(message) < 1000, message
        return message
