"""Stop requests: a signal, or a launcher that exited. The loop calls `check` between steps, then saves and ends."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tunesmith.errors import RunFault
from tunesmith.training.distributed.fatal import terminate, this_rank

ORPHAN_GRACE_S = 60.0
"""Time for a worker whose launcher exited to save and end, in addition to three times its longest loop iteration."""
_ITERATIONS = 3
POLL_S = 0.5


class Interruption:
    """Records stop requests: SIGTERM, SIGUSR2 and, with TUNESMITH_PARENT_PIPE=1, the end of standard input.

    Further requests have no effect.
    """

    def __init__(self) -> None:
        self.requested = False
        self.cause = ""
        self._checked: float | None = None
        self._longest_iteration_s = 0.0
        self._saving = False

    def check(self) -> bool:
        """Whether a stop is requested. Called once per loop iteration, to measure the longest one."""
        now = time.monotonic()
        if self._checked is not None:
            self._longest_iteration_s = max(self._longest_iteration_s, now - self._checked)
        self._checked = now
        return self.requested

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Context of the last save: its duration does not count against the grace period of an orphaned worker.

        A collective inside it whose peer is gone is ended by the watchdog.
        """
        self._saving = True
        try:
            yield
        finally:
            self._saving = False

    @property
    def orphan_grace_s(self) -> float:
        """Grace period of an orphaned worker, in seconds."""
        least = float(os.environ.get("TUNESMITH_ORPHAN_GRACE_S") or ORPHAN_GRACE_S)
        return least + _ITERATIONS * self._longest_iteration_s

    def install_handlers(self) -> None:
        """Install the handlers; call once, in the main thread."""
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._on_signal)
        # Ctrl-C reaches the launcher, which requests a stop; the terminal's own SIGINT must not kill the save.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if os.environ.get("TUNESMITH_PARENT_PIPE") == "1":
            threading.Thread(target=self._watch_parent, name="parent-pipe", daemon=True).start()

    def _on_signal(self, number: int, frame: object) -> None:
        if not self.requested:
            self.cause = signal.Signals(number).name
        self.requested = True

    def _watch_parent(self) -> None:
        """Wait for the launcher to exit: it holds the other end of the pipe and never writes, so a read returns only
        then.

        os.read, since a thread blocked in sys.stdin would hold its lock during interpreter shutdown.
        """
        while os.read(0, 1):
            pass
        if not self.requested:
            self.cause = "the launcher exited"
        self.requested = True
        self._terminate_when_late()

    def _terminate_when_late(self) -> None:
        """Terminate after the grace period: a collective whose peer is gone may hang, and no launcher is left to kill
        this process."""
        requested = earlier = time.monotonic()
        waited_s = 0.0
        while waited_s < self.orphan_grace_s:
            time.sleep(POLL_S)
            now = time.monotonic()
            waited_s += 0.0 if self._saving else now - earlier
            earlier = now
        error = RunFault(
            f"{this_rank(int(os.environ.get('RANK', '0')))} did not end within {time.monotonic() - requested:.0f} s "
            "after its launcher exited: terminating without a save",
            where="see the stacks of all threads above",
            remedy="resume the run: it continues from its latest checkpoint, or from the start if there is none",
        )
        terminate(error, stacks=True)
