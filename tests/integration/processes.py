"""Worker processes of a run, identified by their command line, and helpers for runs in progress."""

import os
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


AWAIT_TERM_AT_STEP_4 = {"TUNESMITH_FAULT": "step.forward:4=await_term"}
"""The environment of a run whose ranks block in step 4 until each has received SIGTERM, so that a request to stop
arrives before the run ends on any machine."""


def steps_of(run: RunDir) -> dict[int, float]:
    """Return step -> loss; for a repeated step that of the last attempt."""
    return {event["step"]: event["loss"] for event in event_lines(run.events, "step")}


def rows_by_step(run: RunDir) -> dict[int, list[int]]:
    """Return step -> sorted rows over all ranks."""
    return {step: sorted(row for entry in entries for row in entry.rows) for step, entries in read_ledger(run).items()}
