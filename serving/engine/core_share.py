"""Leaves cores to training runs on the same machine: the inference process pauses between its steps.

Threads of one training step wait for the slowest. A chat that keeps one core of two busy therefore halves the speed of
a run with two threads, and a lower priority (nice) does not change that: the scheduler still gives a waking thread its
core. So if the machine has fewer cores than the threads of its training runs and of inference, inference computes for
a fixed share of the time and sleeps for the rest.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from tunesmith.launcher.backends.local import WORKER

SHARE = 0.7
"""Share of the time in which inference computes next to training. On 2 cores, training keeps 1 - SHARE / 2 of its speed
and a chat about 0.9 * SHARE (benchmarks/chat.py)."""
CHECK_S = 2.0
"""How often processes are listed: takes a few milliseconds."""


class CoreShare:
    """num_threads: of inference. num_cores: that this process may use. training_threads: returns the number of threads
    with which runs train on this machine. clock: monotonic seconds."""

    def __init__(
        self,
        num_threads: int,
        num_cores: int,
        training_threads: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._num_threads, self._num_cores = num_threads, num_cores
        self._training_threads, self._clock = training_threads, clock
        self._checked: float | None = None
        self._is_shared = False

    def pause_s(self, step_s: float) -> float:
        """Return the seconds to sleep after a step that took `step_s` seconds: 0 if there are enough cores."""
        now = self._clock()
        if self._checked is None or now - self._checked >= CHECK_S:
            training = self._training_threads()
            self._is_shared = training > 0 and training + self._num_threads > self._num_cores
            self._checked = now
        return step_s * (1 - SHARE) / SHARE if self._is_shared else 0.0


def training_threads(processes: Path = Path("/proc")) -> int:
    """Return the number of computing threads of all training workers on this machine; 0 where the system does not list
    processes.

    A worker's threads are its OMP_NUM_THREADS, which the launcher sets; 1 if that cannot be read (another user's).
    """
    try:
        directories = [path for path in processes.iterdir() if path.name.isdigit()]
    except OSError:
        return 0
    return sum(_num_threads(path) for path in directories)


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _num_threads(process: Path) -> int:
    """Computing threads of a process; 0 if it is not a training worker, or has ended."""
    try:
        if WORKER.encode() not in (process / "cmdline").read_bytes().split(b"\0"):
            return 0
        variables = (process / "environ").read_bytes().split(b"\0")
    except PermissionError:
        return 1
    except OSError:
        return 0
    value = next((v.partition(b"=")[2] for v in variables if v.startswith(b"OMP_NUM_THREADS=")), b"")
    return max(1, int(value)) if value.isdigit() else 1
