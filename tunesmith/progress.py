"""Progress of the threads of this process, in units of work: a block of a model computed, a part of a file read.

Code that computes, reads or writes in a loop calls `advance` once per unit, at any depth and in any process. A process
that watches its threads (training.distributed.watchdog) tells a slow one from one that hangs by these counts.
"""

import threading
import time


class Progress:
    """Progress of one thread. units: completed so far. longest_s: the longest time that one took since `restart`."""

    def __init__(self) -> None:
        self.units, self.longest_s = 0, 0.0
        self._since = time.monotonic()

    def advance(self) -> None:
        """Record that a unit of work is complete."""
        now = time.monotonic()
        self.longest_s = max(self.longest_s, now - self._since)
        self._since = now
        self.units += 1

    def restart(self) -> None:
        """Forget the durations so far: another kind of work begins."""
        self.longest_s, self._since = 0.0, time.monotonic()


_by_thread: dict[int, Progress] = {}


def progress_of(thread: int) -> Progress:
    """Return the progress of a thread. thread: its `ident`."""
    if thread not in _by_thread:
        _by_thread[thread] = Progress()
    return _by_thread[thread]


def advance() -> None:
    """Record that the calling thread has completed a unit of work."""
    progress_of(threading.get_ident()).advance()
