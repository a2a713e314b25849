"""Records how an attempt ended on its behalf: called from another thread, another rank or the launcher."""

from contextlib import closing

from tunesmith.errors import ExitCode, TunesmithError
from tunesmith.rundir.event_log import EventLog
from tunesmith.rundir.events import EndEvent, ErrorEvent, Event
from tunesmith.rundir.fence import newest_attempt
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import FINAL, Status, read_status


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

    Nothing is written if a newer attempt has started, if the run directory does not exist, or if the end of this
    attempt is already recorded (unless `replace`). Never raises: the original error matters more than an error while
    recording it, and it is on the terminal or in the log of the process in any case.

    has_begun: False if no worker of the attempt has started; then no `end` event is written. step: completed steps, if
    the status does not have them. seconds: time since the start of the attempt, if known.
    """
    outcome, exit_code = ("preempted", ExitCode.PREEMPTED) if error is None else ("failed", ExitCode.FAULT)
    if isinstance(error, TunesmithError):
        exit_code = error.exit_code
    try:
        if not run.root.is_dir() or newest_attempt(run) > attempt:
            return
        status = read_status(run.status) or Status("preparing")
        if status.phase in FINAL and status.attempt == attempt and not replace:
            return
        status.step = status.step if step is None else step
        events: list[Event] = []
        if isinstance(error, TunesmithError):  # any other error is a bug; its traceback is in the log of the process
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
