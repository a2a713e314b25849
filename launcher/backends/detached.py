"""A launcher without a terminal: a process of its own session on this machine that runs a `tunesmith` command."""

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
"""How long a detached launcher may take until the first worker runs; it continues in any case."""


def start_detached(submission: Submission) -> Submitted:
    """Start the launcher. Returns once it trains; what it refuses at once is raised here."""
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
            raise kind(message or f"the launcher ended with exit code {code}", where=str(run.launcher_log))
        status = read_status(run.status)
        if status is not None and status != before and status.phase not in ("preparing", *FINAL):
            break
        time.sleep(POLL_S)
    line = f"the run goes on by itself (launcher: pid {process.pid}, {os.uname().nodename})"
    return Submitted(submission.launch, (line,), hints(run))


def _error(path: Path, offset: int) -> str:
    """The error that a launcher ended with, from its log."""
    text = path.read_bytes()[offset:].decode("utf-8", "replace")
    _, found, error = text.rpartition("error: ")
    return error.strip() if found else "\n".join(log_tail(path))
