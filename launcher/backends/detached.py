"""Detached launcher: a process in a separate session on this machine that runs a `tunesmith` command."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tunesmith.errors import ExitCode, InputError, RunFault
from tunesmith.launcher.backends.cluster import Submission, Submitted, hints
from tunesmith.launcher.exit_status import log_tail
from tunesmith.rundir.status import FINAL, read_status

POLL_S = 0.2
BEGIN_S = 300.0
"""How long to wait for the first worker of a detached launcher, which continues in any case."""


def start_detached(submission: Submission) -> Submitted:
    """Start the launcher and return once the workers run. Raises the error of a launcher that exits before that."""
    run = submission.run
    run.logs.mkdir(parents=True, exist_ok=True)
    before = read_status(run.status)
    size_before = run.launcher_log.stat().st_size if run.launcher_log.is_file() else 0
    with open(run.launcher_log, "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tunesmith.cli.main", *submission.placed_command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + BEGIN_S
    while time.monotonic() < deadline:
        if (code := process.poll()) is not None:
            if code in (ExitCode.DONE, ExitCode.PREEMPTED):
                break
            message = _error(run.launcher_log, size_before)
            kind = InputError if code == ExitCode.BAD_INPUT else RunFault
            raise kind(message or f"the launcher exited with code {code}", where=str(run.launcher_log))
        status = read_status(run.status)
        if status is not None and status != before and status.phase not in ("preparing", *FINAL):
            break
        time.sleep(POLL_S)
    line = f"the run continues in the background (launcher: pid {process.pid} on {os.uname().nodename})"
    return Submitted(submission.launch, (line,), hints(run))


def _error(path: Path, offset: int) -> str:
    """The error message in the log of a launcher, otherwise the last lines of the log."""
    text = path.read_bytes()[offset:].decode("utf-8", "replace")
    _, separator, error = text.rpartition("error: ")
    return error.strip() if separator else "\n".join(log_tail(path))
