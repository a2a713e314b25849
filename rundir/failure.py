"""Records how an attempt ended on its behalf: called from another thread, another rank or the launcher."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from tunesmith.errors import ExitCode, TunesmithError
from tunesmith.rundir.event_log import EventLog
from tunesmith.rundir.events import EndEvent, ErrorEvent, Event
from tunesmith.rundir.fence import may_write
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import FINAL, Status, read_status

_LOCK_S = 5.0


def record_end(
    run: RunDir,
    attempt: int,
    error: BaseException | None,
    *,
    has_begun: bool = True,
    replace: bool = False,
    step: int | None = None,
    seconds: float | None = None,
) -> None:
    """Record that an attempt failed, or if `error` is None that it was preempted: `error` and `end` events, status.

    Nothing is written if a newer attempt has started, if the run directory is missing or not that of the run, or if the
    end of this attempt is already recorded (unless `replace`): the first of several processes records its error. Never
    raises: the original error matters more than an error while recording it, and it is on the terminal or in the log of
    the process in any case.

    has_begun: False if no worker of the attempt has started; then no `end` event is written. step: completed steps, if
    the status does not have them. seconds: time since the start of the attempt, if known.
    """
    outcome, exit_code = ("preempted", ExitCode.PREEMPTED) if error is None else ("failed", ExitCode.FAULT)
    if isinstance(error, TunesmithError):
        exit_code = error.exit_code
    try:
        with _exclusive(run):
            if not may_write(run, attempt):
                return
            status = read_status(run.status) or Status("preparing")
            if status.phase in FINAL and status.attempt == attempt and not replace:
                return
            status.step = status.step if step is None else step
            events: list[Event] = []
            if isinstance(error, TunesmithError):  # any other error is a bug; its traceback is in the process's log
                events.append(ErrorEvent(what=error.what, where=error.where, remedy=error.remedy, code=error.code))
            if has_begun:
                events.append(EndEvent(outcome=outcome, step=status.step, exit_code=int(exit_code), seconds=seconds))
            if events:
                with closing(EventLog(run.events)) as log:
                    for event in events:
                        log.write(event)
                    log.sync()
            status.phase, status.attempt, status.exit_code, status.eta_s = outcome, attempt, int(exit_code), None
            status.write(run.status)
    except Exception:
        return


@contextmanager
def _exclusive(run: RunDir) -> Iterator[None]:
    """Let one process at a time record an end: two ranks may fail at once. Raises OSError without a run directory.

    It waits for a few seconds only, and not on file systems without locks: an end recorded twice is better than none.
    """
    fd = os.open(run.root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + _LOCK_S
        while time.monotonic() < deadline:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                break
        yield
    finally:
        os.close(fd)
