"""Being asked to stop: a signal, or a launcher that died. The loop asks `requested` between steps, saves and ends."""

import os
import signal
import threading


class Interruption:
    """SIGTERM, SIGUSR2 and (TUNESMITH_PARENT_PIPE=1) the end of standard input ask for an end. Twice harms nothing."""

    def __init__(self) -> None:
        self.requested = False
        self.cause = ""

    def listen(self) -> None:
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
