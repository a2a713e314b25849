"""Runs a process per tracker while a run trains. Neither the workers nor the launcher wait for one until it has ended.

The processes read the run directory (tracking/process.py). One that exits is started again; one that exits repeatedly,
or makes no progress, costs one warning event.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field

from tunesmith.rundir.event_log import EventLog
from tunesmith.rundir.events import Event, TrackerEvent, WarningEvent
from tunesmith.rundir.fence import loss_of
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import read_status
from tunesmith.tracking.state import PATIENCE_S, read_state, state_file

MODULE = "tunesmith.tracking.process"
STALLED_S = 60.0
"""Time without progress after which a tracker counts as stalled while the run trains."""
END_S = 15.0
"""Time without progress that the launcher waits for a tracker after the run. One that was reported gets a second, and a
preempted run PREEMPTED_S, since its time may be over."""
PREEMPTED_S = 5.0
RESTART_S = 1.0
MAX_RESTART_S = 300.0
CHECK_S = 1.0


@dataclass
class _Sender:
    """The process of one tracker. failures: exits without progress in between. reported: whether the warning is
    written. restart_at: monotonic time of the next start."""

    kind: str
    process: subprocess.Popen[bytes] | None = None
    log_size: int = 0
    failures: int = 0
    reported: bool = False
    announced: bool = False
    restart_at: float = 0.0
    position: int = 0
    progress_at: float = field(default_factory=time.monotonic)


class Trackers:
    """stalled_s, end_s: see STALLED_S and END_S."""

    def __init__(self, run: RunDir, kinds: Sequence[str], *, stalled_s: float = STALLED_S, end_s: float = END_S):
        self._run, self._stalled_s, self._end_s = run, stalled_s, end_s
        self._senders = [_Sender(kind) for kind in kinds]
        self._checked_at = 0.0

    def start(self) -> None:
        for sender in self._senders:
            self._start(sender)

    def poll(self) -> None:
        """Start processes that have exited again, and report failures; to be called often. Never raises."""
        now = time.monotonic()
        if now - self._checked_at < CHECK_S or not self._senders:
            return
        self._checked_at = now
        with suppress(OSError):
            for sender in self._senders:
                self._check(sender, now)

    def finish(self, print_line: Callable[[str], None] = lambda text: None) -> None:
        """Let the processes send what is left while they make progress, then end them. Never raises."""
        status = read_status(self._run.status)
        if status is not None and status.phase == "preempted":
            self._end_s = min(self._end_s, PREEMPTED_S)
        for sender in self._senders:
            with suppress(OSError):
                if sender.process is None or sender.process.poll() is not None:
                    self._start(sender)
                _close_input(sender)
        for sender in self._senders:
            with suppress(OSError):
                self._wait(sender, print_line)

    def kill(self) -> None:
        """End the processes at once."""
        for sender in self._senders:
            _kill(sender)

    def _start(self, sender: _Sender) -> None:
        log = self._run.tracker_log(sender.kind)
        log.parent.mkdir(exist_ok=True)
        sender.log_size = log.stat().st_size if log.is_file() else 0
        with open(log, "ab") as output:
            sender.process = subprocess.Popen(
                _command(self._run, sender.kind),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        sender.progress_at = time.monotonic()

    def _check(self, sender: _Sender, now: float) -> None:
        has_progress = self._note_progress(sender)
        if sender.process is not None and sender.process.poll() is not None:
            code, sender.process = sender.process.returncode, None
            sender.failures += 1
            sender.restart_at = now + min(RESTART_S * 4 ** (sender.failures - 1), MAX_RESTART_S)
            if sender.failures > 1:
                self._report(sender, self._cause(sender, code))
        elif sender.process is None:
            if now >= sender.restart_at:
                self._start(sender)
        elif not has_progress and now - sender.progress_at > self._stalled_s and self._is_behind(sender):
            self._report(sender, f"it has not responded for {self._stalled_s:.0f} seconds")

    def _note_progress(self, sender: _Sender) -> bool:
        state = read_state(state_file(self._run, sender.kind))
        if state.url and not sender.announced:
            sender.announced = True
            self._write(TrackerEvent(name=sender.kind, run_id=state.run_id, url=state.url))
        if state.position == sender.position:
            return False
        if state.position > sender.position:
            sender.failures = 0
        sender.position, sender.progress_at = state.position, time.monotonic()
        return True

    def _is_behind(self, sender: _Sender) -> bool:
        return self._run.events.is_file() and self._run.events.stat().st_size > sender.position

    def _wait(self, sender: _Sender, print_line: Callable[[str], None]) -> None:
        process, path = sender.process, state_file(self._run, sender.kind)
        if process is None:
            return
        begun, announced = time.time(), False
        while process.poll() is None:
            state = read_state(path)
            patience = 1.0 if sender.reported else self._end_s + max(state.patience_s - PATIENCE_S, 0.0)
            changed = path.stat().st_mtime if path.is_file() else 0.0
            if time.time() - max(begun, changed) > patience:
                _kill(sender)
                self._report(sender, "it did not respond after the run")
                return
            if not announced and time.time() - begun > 3.0:
                announced = True
                print_line(f"sending the rest to {sender.kind}")
            time.sleep(0.1)
        self._note_progress(sender)
        if process.returncode:
            self._report(sender, self._cause(sender, process.returncode))

    def _cause(self, sender: _Sender, code: int) -> str:
        """The error in the log of a process that has exited."""
        text = ""
        with suppress(OSError):
            log = self._run.tracker_log(sender.kind).read_bytes()[sender.log_size :].decode("utf-8", "replace")
            text = log.rpartition("error: ")[2].strip() if "error: " in log else ""
        if not text and code < 0:
            text = f"its process was killed by {signal.Signals(-code).name}"
        return (text or f"its process exited with {code}")[:300]

    def _report(self, sender: _Sender, cause: str) -> None:
        """Write the warning event of this tracker, once."""
        if sender.reported:
            return
        sender.reported = True
        remedy = f"the run continues; see {self._run.tracker_log(sender.kind).name}, and send the rest with"
        message = f"{sender.kind} receives nothing: {cause}; {remedy} `tunesmith track {self._run.root}`"
        self._write(WarningEvent(message=message, code="tracker_failed"))

    def _write(self, event: Event) -> None:
        if loss_of(self._run) is None:
            with closing(EventLog(self._run.events)) as log:
                log.write(event)


@contextmanager
def tracking(run: RunDir, kinds: Sequence[str], print_line: Callable[[str], None]) -> Iterator[Trackers]:
    """Send a run to its trackers while the block runs, and what is left after it."""
    trackers = Trackers(run, kinds)
    try:
        with suppress(OSError):
            trackers.start()
        yield trackers
    finally:
        if loss_of(run) is None:
            trackers.finish(print_line)
        trackers.kill()


def track(run: RunDir, kind: str) -> int:
    """Send what a tracker has not received yet, in a process whose output is shown; return its exit code."""
    return subprocess.run(_command(run, kind), stdin=subprocess.DEVNULL).returncode


def _command(run: RunDir, kind: str) -> list[str]:
    return [sys.executable, "-P", "-m", MODULE, str(run.root.resolve()), "--tracker", kind]


def _close_input(sender: _Sender) -> None:
    if sender.process is not None and sender.process.stdin is not None:
        sender.process.stdin.close()


def _kill(sender: _Sender) -> None:
    """Kill the process and those that the tool has started in its session."""
    process, sender.process = sender.process, None
    if process is not None and process.poll() is None:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    _close_input(sender)
