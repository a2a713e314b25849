"""One training on a Ray cluster, seen from the main thread: started beside it, watched, asked to end, accounted for."""

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from tunesmith.errors import ExitCode, RunFault
from tunesmith.launcher.exit_status import Ending, how_it_ended
from tunesmith.launcher.ray.rank import death_of
from tunesmith.launcher.signals import on_signals
from tunesmith.rundir.failure import record_end
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import FINAL, is_running, read_status

POLL_S = 0.1
ASKED_S = 30.0
"""How long workers that were asked to end before they had begun may take to say so."""
BEAT_S = 10.0


def follow(trainer: Any, run: RunDir, attempt: int, watch: Callable[[], None], on_asked: Callable[[], None]) -> Ending:
    """Run Ray's trainer to its end. attempt: the first one's number; Ray may start more. watch, on_asked: as of
    `Backend.run`."""
    training = _Training(trainer)
    told = False

    def ask() -> None:
        """The request lies in the run directory, where the ranks look for it; the first is told."""
        nonlocal told
        run.stop_request.touch()
        if not told:
            told = True
            on_asked()

    with on_signals(ask):
        training.start()
        asked_at: float | None = None
        while training.is_alive():
            watch()
            _beat(run)
            if run.stop_request.exists():
                asked_at = asked_at or time.monotonic()
                if time.monotonic() - asked_at > ASKED_S and _nobody_works(run):
                    break
            time.sleep(POLL_S)
        watch()
    return _ending(run, attempt, training)


class _Training(threading.Thread):
    """`fit` beside the main thread, which listens to signals. error: what it raised; result: of rank 0."""

    def __init__(self, trainer: Any):
        super().__init__(name="ray-train", daemon=True)
        self.trainer, self.error = trainer, None

    def run(self) -> None:
        try:
            self.trainer.fit()
        except BaseException as error:
            self.error = error


def _beat(run: RunDir) -> None:
    """Sign of life until a worker gives its own: from another machine nothing else can be seen."""
    status = read_status(run.status)
    if status is not None and status.phase == "preparing" and time.time() - status.heartbeat > BEAT_S:
        status.write(run.status)


def _nobody_works(run: RunDir) -> bool:
    """Whether no worker has begun, or the last one is gone and others wait for room."""
    status = read_status(run.status)
    if status is None or status.phase == "preparing":
        return True
    return status.phase not in FINAL and not is_running(status)


def _ending(run: RunDir, first_attempt: int, training: _Training) -> Ending:
    """From what the newest attempt told, and what Ray raised."""
    attempt = max(first_attempt, run.logged_attempt())
    if training.error is None and run.stop_request.exists() and _nobody_works(run):  # asked before any had begun
        return how_it_ended(run, attempt, [-signal.SIGTERM], asked=True, oom_kills=0)
    failures: dict[int, Exception] = getattr(training.error, "worker_failures", None) or {}
    dead = {rank: found for rank, error in failures.items() if (found := death_of(error)) is not None}
    if dead:
        codes = [dead[rank].code if rank in dead else int(ExitCode.FAULT) for rank in range(max(dead) + 1)]
        first = [(rank, death.code) for rank, death in sorted(dead.items())]
        return how_it_ended(run, attempt, codes, first_dead=first, asked=False, oom_kills=0)
    status = read_status(run.status)
    told = status.exit_code if status is not None and status.attempt == attempt else None
    if training.error is None and told is not None:
        return how_it_ended(run, attempt, [told], asked=run.stop_request.exists(), oom_kills=0)
    words = str(training.error or "its workers ended without a result").strip().splitlines()
    error = RunFault(
        f"Ray could not go on: {words[-1][:300]}",
        where="\n              | ".join([str(run.logs), *words[-8:]]),
        remedy=f"`tunesmith resume {run.root}` goes on from the newest checkpoint",
    )
    record_end(run, attempt, error)
    return Ending(ExitCode.FAULT, error)
