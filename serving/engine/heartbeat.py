"""Heartbeats of the inference process: it sends one per second, and the client restarts a process that hangs.

A process hangs if it sends nothing (stopped, or blocked in native code) or if its main thread makes no progress. Work
that takes long is no hang: every layer of a batch is progress, and while weights are loaded, so is CPU time or reading.
"""

import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

BEAT_S = 1.0
START_S = 600.0
"""Limit until the first heartbeat: importing torch from a slow file system takes minutes."""
SLOWDOWN = 10.0
"""Progress may take this many times the longest time so far: machine load varies."""
_BUSY_S = 0.01
"""CPU seconds between two heartbeats that show that weights are being loaded."""
_STACK_DEPTH = 12

Beat = dict[str, Any]
Stage = Literal["idle", "working", "loading"]


class Progress:
    """What the main thread is doing; read by the thread that sends the heartbeats."""

    def __init__(self) -> None:
        self.stage: Stage = "working"
        self.count = 0
        """Changes whenever work makes progress."""

    def advance(self) -> None:
        self.count += 1

    @contextmanager
    def during(self, stage: Stage) -> Iterator[None]:
        before, self.stage = self.stage, stage
        try:
            yield
        finally:
            self.stage = before
            self.advance()


class Heartbeat:
    """A thread that sends heartbeats: stage, progress, and the stack of the main thread."""

    def __init__(self, progress: Progress, send: Callable[[Beat], None]):
        self._progress, self._send = progress, send
        self._main = threading.main_thread().ident or 0
        self._activity = _activity()

    def start(self) -> None:
        """The first heartbeat is sent before anything else: from then on the client applies the limit of a process that
        works, not the one for starting."""
        self._send(self.beat())
        threading.Thread(target=self._loop, name="heartbeat", daemon=True).start()

    def _loop(self) -> None:
        try:
            while True:
                time.sleep(BEAT_S)
                self._send(self.beat())
        except OSError:  # the API has exited; the main thread ends this process
            return

    def beat(self) -> Beat:
        activity, before = _activity(), self._activity
        self._activity = activity
        is_active = activity[0] - before[0] >= _BUSY_S or activity[1] > before[1]
        if self._progress.stage == "loading" and is_active:
            self._progress.advance()
        return {"stage": self._progress.stage, "count": self._progress.count, "stack": _stack_of(self._main)}


class Pulse:
    """The client's view of the heartbeats of one process. hang_s: limit without a heartbeat, and without progress."""

    def __init__(self, hang_s: float):
        self._hang_s = hang_s
        self._beat: Beat | None = None
        self._silent_s = self._still_s = self._longest_s = 0.0

    def hear(self, beat: Beat) -> None:
        if self._beat is None or beat["stage"] == "idle":
            self._still_s = 0.0
        elif beat["count"] != self._beat["count"]:
            self._longest_s = max(self._longest_s, self._still_s)
            self._still_s = 0.0
        self._silent_s, self._beat = 0.0, beat

    def fault(self, elapsed_s: float) -> str | None:
        """Why the process counts as hanging, or None. elapsed_s: since the last call, without time in which this
        process could not receive anything."""
        self._silent_s += elapsed_s
        self._still_s += elapsed_s
        if self._beat is None:
            return f"did not start within {START_S:g} s" if self._silent_s > max(START_S, self._hang_s) else None
        if self._silent_s > self._hang_s:
            return f"sent nothing for {self._silent_s:.0f} s"
        if self._still_s > max(self._hang_s, SLOWDOWN * self._longest_s):
            return f"made no progress for {self._still_s:.0f} s ({self._beat['stage']}; {self._beat['stack']})"
        return None


def _activity() -> tuple[float, int]:
    """(CPU seconds of this process, number of its reads from disk and of its major page faults)."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_inblock + usage.ru_majflt


def _stack_of(thread: int) -> str:
    """The innermost calls of a thread, the last one first: `step batched_model.py:69 < ...`."""
    frame = sys._current_frames().get(thread)
    calls = traceback.extract_stack(frame)[-_STACK_DEPTH:]
    return " < ".join(f"{call.name} {call.filename.rpartition('/')[2]}:{call.lineno}" for call in reversed(calls))
