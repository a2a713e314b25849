"""Worker processes of a run, identified by their command line, and helpers for runs in progress."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.event_lines import event_lines
from tunesmith.rundir.ledger import read_ledger
from tunesmith.rundir.paths import RunDir

T = TypeVar("T")


def workers_of(run: RunDir) -> dict[int, int]:
    """Return rank -> pid of the run's running workers."""
    pids = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
            if b"tunesmith.training.worker" not in arguments or os.fsencode(run.root.resolve()) not in arguments:
                continue
            environment = dict(
                line.split(b"=", 1) for line in (folder / "environ").read_bytes().split(b"\0") if b"=" in line
            )
        except OSError:
            continue
        if b"RANK" in environment:
            pids[int(environment[b"RANK"])] = int(folder.name)
    return pids


def wait_for(condition: Callable[[], T], timeout_s: float = 120, every_s: float = 0.1) -> T:
    """Poll until the result is true and return it."""
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline, "timed out"
        time.sleep(every_s)
    return result


def hang_at_step_4(directory: Path) -> dict[str, str]:
    """Return an environment that makes a run hang in step 4 until `release`, so that a request arrives before it ends
    on any machine."""
    return {"TUNESMITH_FAULT": "step.forward:4=hang", "TUNESMITH_FAULT_UNTIL": str(directory / "go-on")}


def release(directory: Path) -> None:
    """Let the run continue, after enough time for the request to be noticed."""
    time.sleep(1.5)
    (directory / "go-on").touch()


def steps_of(run: RunDir) -> dict[int, float]:
    """Return step -> loss; for a repeated step that of the last attempt."""
    return {event["step"]: event["loss"] for event in event_lines(run.events, "step")}


def rows_by_step(run: RunDir) -> dict[int, list[int]]:
    """Return step -> sorted rows over all ranks."""
    return {step: sorted(row for entry in entries for row in entry.rows) for step, entries in read_ledger(run).items()}
