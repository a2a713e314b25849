"""Wait for a condition instead of a time: as fast as the machine is, and failing early where a process has exited."""

import subprocess
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

LIMIT_S = 300.0
"""No expectation of speed: it only ends what hangs, also on a machine with much other work."""


def wait_for(
    condition: Callable[[], T],
    timeout_s: float = LIMIT_S,
    explain: Callable[[], object] = lambda: "the condition did not become true",
    *,
    every_s: float = 0.05,
    processes: Iterable[subprocess.Popen] = (),
) -> T:
    """The first result that is not false.

    explain: what an AssertionError says, such as a log. processes: those the condition depends on; that one of them has
    exited is a failure at once.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        codes = [process.poll() for process in processes]
        if result := condition():
            return result
        assert codes == [None] * len(codes), f"exit codes {codes}: {explain()}"
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {explain()}"
        time.sleep(every_s)
