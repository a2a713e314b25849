"""Being asked to stop: a signal, or a launcher that died. The loop asks `check` between steps, saves and ends."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tunesmith.errors import RunFault
from tunesmith.training.distributed.fatal import terminate, this_rank

ORPHAN_GRACE_S = 60.0
"""What a worker whose launcher has gone may take to save and end, beside three times the longest lap of its loop."""
_ITERATIONS = 3
POLL_S = 0.5


class Interruption:
    """SIGTERM, SIGUSR2 and (TUNESMITH_PARENT_PIPE=1) the end of standard input ask for an end. Twice harms nothing."""

    def __init__(self) -> None:
        self.requested = False
        self.cause = ""
        self._checked: float | None = None
        self._longest_iteration_s = 0.0
        self._saving = False

    def check(self) -> bool:
        """Whether an end is asked for. Called once a lap of the loop: the longest tells how long an end may take."""
        now = time.monotonic()
        if self._checked is not None:
            self._longest_iteration_s = max(self._longest_iteration_s, now - self._checked)
        self._checked = now
        return self.requested

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Around the last save: however long disk and mirror take, an orphan's time does not run meanwhile.

        A collective in it whose other end is cut off ends by its own time limit (`ranks.COLLECTIVE_TIMEOUT_S`).
        """
        self._saving = True
        try:
            yield
        finally:
            self._saving = False

    @property
    def orphan_grace_s(self) -> float:
        least = float(os.environ.get("TUNESMITH_ORPHAN_GRACE_S") or ORPHAN_GRACE_S)
        return least + _ITERATIONS * self._longest_iteration_s

    def install_handlers(self) -> None:
        """Install the handlers; call once, in the main thread."""
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._on_signal)
        # Ctrl-C reaches the launcher, which asks for an end; the terminal's own copy must not kill the save.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if os.environ.get("TUNESMITH_PARENT_PIPE") == "1":
            threading.Thread(target=self._watch_parent, name="parent-pipe", daemon=True).start()

    def _on_signal(self, number: int, frame: object) -> None:
        if not self.requested:
            self.cause = signal.Signals(number).name
        self.requested = True

    def _watch_parent(self) -> None:
        """The launcher holds the other end of the pipe and never writes: a read returns only when it has ended.

        os.read, since a thread that waits inside sys.stdin would hold its lock against the interpreter's own end.
        """
        while os.read(0, 1):
            pass
        if not self.requested:
            self.cause = "the launcher ended"
        self.requested = True
        self._terminate_when_late()

    def _terminate_when_late(self) -> None:
        """A collective whose other end is cut off may hang for long; nobody is left who would end this process."""
        asked = earlier = time.monotonic()
        waited_s = 0.0
        while waited_s < self.orphan_grace_s:
            time.sleep(POLL_S)
            now = time.monotonic()
            waited_s += 0.0 if self._saving else now - earlier
            earlier = now
        error = RunFault(
            f"{this_rank(int(os.environ.get('RANK', '0')))} has not ended {time.monotonic() - asked:.0f} s after its "
            "launcher did: it ends now, without a save",
            where="above stands what every thread waited for",
            remedy="resume the run: it goes on from its newest checkpoint",
        )
        terminate(error, stacks=True)
