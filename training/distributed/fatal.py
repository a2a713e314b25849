"""What a rank says when it cannot go on: in its log, and in the run directory where that can be reached."""

import faulthandler
import os
import socket
import sys
import time

from tunesmith.errors import ExitCode, TunesmithError
from tunesmith.rundir.events import EventLog
from tunesmith.rundir.fence import newest_attempt
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import FINAL, Status, read_status


def this_rank(rank: int) -> str:
    return f"rank {rank} on {socket.gethostname()}"


def note_failure(run: RunDir, attempt: int, error: TunesmithError) -> None:
    """The `error` and `end` events and the final status, from whichever rank. Nothing where the end of this attempt
    is told already, a newer one has begun, or the run directory cannot be reached: the log has it in any case."""
    status = read_status(run.status) or Status("loading")
    if not run.root.is_dir() or newest_attempt(run) > attempt or (status.attempt == attempt and status.phase in FINAL):
        return
    try:
        log = EventLog(run.events)
        log.write("error", what=error.what, where=error.where, remedy=error.remedy)
        log.write("end", outcome="failed", step=status.step, exit_code=int(error.exit_code), seconds=None)
        log.sync()
        log.close()
        status.phase, status.attempt, status.exit_code, status.eta_s = "failed", attempt, int(error.exit_code), None
        status.write(run.status)
    except OSError:
        pass  # the disk may be what failed


def end_hard(error: TunesmithError, *, stacks: bool, wait_s: float = 0.0) -> None:
    """End this process, whatever its other threads wait for; the message is the last that it prints.

    stacks: where every thread stands goes before it. wait_s: between the two, for other ranks to do the same.
    """
    if stacks:
        faulthandler.dump_traceback(file=2, all_threads=True)
    time.sleep(wait_s)
    print(error, file=sys.__stderr__, flush=True)
    os._exit(int(error.exit_code) or ExitCode.FAULT)
