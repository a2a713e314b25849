"""The run of a trial: an ordinary run, started, stopped and inspected through its directory and its cluster."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tunesmith.errors import OutOfMemory, RunFault, TunesmithError
from tunesmith.launcher.backends.cluster import Cluster, Submission
from tunesmith.launcher.exit_status import log_tail
from tunesmith.launcher.runs.cluster_jobs import jobs_of
from tunesmith.launcher.runs.cluster_watch import ClusterWatch
from tunesmith.launcher.runs.remote import launcher_log, stop_run
from tunesmith.rundir.event_log import EventFollower, read_events
from tunesmith.rundir.events import ErrorEvent, EvaluationEvent
from tunesmith.rundir.lock import is_free
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import is_running, read_status

RunState = Literal["working", "finished", "preempted", "failed", "lost"]
MAX_STARTS = 3
"""Consecutive starts of a run without a step in between."""
STOP_EVERY_S, MAX_STOP_EVERY_S = 2.0, 30.0
"""Interval of repeated stop requests, which doubles."""


@dataclass
class _Start:
    """A start in a thread: submitting waits until the workers run, or until the launcher reports an error."""

    thread: threading.Thread
    time: float
    error: TunesmithError | None = None


class TrialRun:
    """number: of the trial. The run may have been started by an earlier command, which was killed since."""

    def __init__(self, number: int, run: RunDir):
        self.number, self.run = number, run
        self._follower = EventFollower(run.events)
        self._watch = ClusterWatch(run)
        self._start: _Start | None = None
        self._starts, self._step_at_start = 0, -1
        self._stop_at, self._stop_every_s = 0.0, STOP_EVERY_S

    @property
    def step(self) -> int:
        status = read_status(self.run.status)
        return status.step if status else 0

    @property
    def total_steps(self) -> int:
        status = read_status(self.run.status)
        return status.total_steps if status else 0

    def start(self, cluster: Cluster, submission: Submission) -> bool:
        """Start or resume the run on its cluster, in the background. False once MAX_STARTS is reached.

        A run that an earlier command has started meanwhile is not started twice: its lock rejects the second launcher.
        """
        step = self.step
        self._starts = 1 if step > self._step_at_start else self._starts + 1
        if self._starts > MAX_STARTS:
            return False
        self._step_at_start = step

        def submit() -> None:
            try:
                cluster.check(submission)
                cluster.submit(submission)
            except TunesmithError as error:
                start.error = error
            except Exception as error:  # such as no process or memory left
                start.error = RunFault(f"the run could not be started: {error}")

        start = _Start(threading.Thread(target=submit, daemon=True), time.time())
        self._start = start
        start.thread.start()
        return True

    def state(self) -> RunState:
        """The state of the run. lost: no process works on it, and it recorded no end; perhaps it was never started."""
        status = read_status(self.run.status)
        if self._start is not None and self._start.thread.is_alive():
            return "working"
        if (status is not None and is_running(status)) or not is_free(self.run):
            return "working"
        if self._watch.may_be_active(status, self._started_at()):
            return "working"
        status = read_status(self.run.status)  # the final one, now that no process writes it
        if status is not None and status.phase in ("done", "early_stopped"):
            return "finished"
        if status is not None and status.phase in ("preempted", "failed"):
            return status.phase
        # A launcher that ended with an error would end with the same again.
        return "failed" if self._start is not None and self._start.error is not None else "lost"

    def evaluations(self) -> Iterator[EvaluationEvent]:
        """New evaluations, in the order of the event log; those of repeated steps again."""
        for event in self._follower.new():
            if isinstance(event, EvaluationEvent):
                yield event

    def request_stop(self) -> None:
        """Stop the run like `tunesmith stop`. Call repeatedly until it has ended: a launcher that is just starting
        discards earlier requests."""
        if time.monotonic() < self._stop_at:
            return
        self._stop_at = time.monotonic() + self._stop_every_s
        self._stop_every_s = min(2 * self._stop_every_s, MAX_STOP_EVERY_S)
        try:
            stop_run(self.run, 0.0)
            self._watch.cancel_pending(read_status(self.run.status), self._started_at())
        except TunesmithError:  # it is still running
            return

    def failure(self) -> str:
        """Why the run failed, in one line."""
        if (error := self._last_error()) is not None:
            return one_line(str(error.what), error.where)
        if self._start is not None and self._start.error is not None:
            return one_line(self._start.error.what, self._start.error.where)
        faults = [job.fault for job in jobs_of(self.run) if job.fault]
        return (faults or log_tail(launcher_log(self.run), 1) or ["no error was recorded"])[-1]

    def is_verdict(self) -> bool:
        """Whether it failed because its numbers show that it learned nothing or destroyed the model."""
        error = self._last_error()
        return error is not None and error.code not in (None, OutOfMemory.CODE)

    def _last_error(self) -> ErrorEvent | None:
        return next(reversed(list(read_events(self.run.events, ErrorEvent))), None)

    def _started_at(self) -> float:
        """Seconds since the epoch; of a run that an earlier command has started, when it was recorded."""
        if self._start is not None:
            return self._start.time
        try:
            return self.run.launch.stat().st_mtime
        except OSError:
            return 0.0


def one_line(what: str, where: str | None) -> str:
    text = f"{what} ({where})" if where else what
    return "; ".join(line.strip() for line in text.splitlines())
