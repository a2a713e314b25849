"""Runs Ray's trainer in a background thread, monitors it, forwards stop requests and determines how it ended."""

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from tunesmith.errors import ExitCode, RunFault
from tunesmith.launcher.exit_status import Ending, ending_of
from tunesmith.launcher.ray.rank import worker_exit_of
from tunesmith.launcher.signals import on_signals
from tunesmith.rundir.failure import record_end
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.resume_point import resume_point
from tunesmith.rundir.status import FINAL, is_running, read_status

POLL_S = 0.1
STOP_S = 30.0
"""How long to wait after a stop request for workers that have not started."""
BEAT_S = 10.0


def follow(trainer: Any, run: RunDir, attempt: int, watch: Callable[[], None], on_stop: Callable[[], None]) -> Ending:
    """Run Ray's trainer until it ends. attempt: number of the first attempt; Ray may start more. watch, on_stop: see
    `Backend.run`."""
    training = _Training(trainer)
    is_announced = False

    def request_stop() -> None:
        """Write the request to the run directory, where the ranks check for it; announce only the first."""
        nonlocal is_announced
        run.stop_request.touch()
        if not is_announced:
            is_announced = True
            on_stop()

    with on_signals(request_stop):
        training.start()
        requested_at: float | None = None
        while training.is_alive():
            watch()
            _beat(run)
            if run.stop_request.exists():
                requested_at = requested_at or time.monotonic()
                if time.monotonic() - requested_at > STOP_S and _no_worker_runs(run):
                    break
            time.sleep(POLL_S)
        watch()
    return _ending(run, attempt, training)


class _Training(threading.Thread):
    """Runs `fit` in a background thread, since the main thread handles signals. error: what it raised."""

    def __init__(self, trainer: Any):
        super().__init__(name="ray-train", daemon=True)
        self.trainer, self.error = trainer, None

    def run(self) -> None:
        try:
            self.trainer.fit()
        except BaseException as error:
            self.error = error


def _beat(run: RunDir) -> None:
    """Update the heartbeat until a worker does, since other machines can see nothing else."""
    status = read_status(run.status)
    if status is not None and status.phase == "preparing" and time.time() - status.heartbeat > BEAT_S:
        status.write(run.status)


def _no_worker_runs(run: RunDir) -> bool:
    """Whether no worker has started, or all have exited and new ones wait for resources."""
    status = read_status(run.status)
    if status is None or status.phase == "preparing":
        return True
    return status.phase not in FINAL and not is_running(status)


def _ending(run: RunDir, first_attempt: int, training: _Training) -> Ending:
    """Determine the ending from the status of the newest attempt and the error that Ray raised."""
    attempt = max(first_attempt, run.logged_attempt())
    if training.error is None and run.stop_request.exists() and _no_worker_runs(run):  # stopped before any started
        return ending_of(run, attempt, [-signal.SIGTERM], stop_requested=True, oom_kills=0)
    failures: dict[int, Exception] = getattr(training.error, "worker_failures", None) or {}
    exits = {rank: ended for rank, error in failures.items() if (ended := worker_exit_of(error)) is not None}
    if exits:
        codes = [exits[rank].code if rank in exits else int(ExitCode.FAULT) for rank in range(max(exits) + 1)]
        first = [(rank, each.code) for rank, each in sorted(exits.items())]
        return ending_of(run, attempt, codes, first_failed=first, stop_requested=False, oom_kills=0)
    status = read_status(run.status)
    recorded = status.exit_code if status is not None and status.attempt == attempt else None
    if training.error is None and recorded is not None:
        return ending_of(run, attempt, [recorded], stop_requested=run.stop_request.exists(), oom_kills=0)
    lines = str(training.error or "its workers exited without a result").strip().splitlines()
    error = RunFault(
        f"Ray could not continue: {lines[-1][:300]}",
        where="\n              | ".join([str(run.logs), *lines[-8:]]),
        remedy=f"`tunesmith resume {run.root}` continues from {resume_point(run)}",
    )
    record_end(run, attempt, error)
    return Ending(ExitCode.FAULT, error)
