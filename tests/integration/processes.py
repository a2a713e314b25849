"""Workers of a run as processes: found by their command line, wherever they were started."""

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
    """rank -> pid of the run's workers that live."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"tunesmith.training.worker" not in words or os.fsencode(run.root.resolve()) not in words:
                continue
            environment = dict(
                line.split(b"=", 1) for line in (folder / "environ").read_bytes().split(b"\0") if b"=" in line
            )
        except OSError:
            continue
        if b"RANK" in environment:
            found[int(environment[b"RANK"])] = int(folder.name)
    return found


def wait_for(what: Callable[[], T], timeout_s: float = 120, every_s: float = 0.1) -> T:
    """The first answer that is not false."""
    deadline = time.monotonic() + timeout_s
    while not (answer := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(every_s)
    return answer


def held(directory: Path) -> dict[str, str]:
    """The environment of a run that stands still in step 4 until `let_go`, so that what is asked meanwhile comes in
    time however fast the machine is."""
    return {"TUNESMITH_FAULT": "step.forward:4=hang", "TUNESMITH_FAULT_UNTIL": str(directory / "go-on")}


def let_go(directory: Path) -> None:
    """Once whoever looks for a request has had the time to see it."""
    time.sleep(1.5)
    (directory / "go-on").touch()


def steps_of(run: RunDir) -> dict[int, float]:
    """step -> loss, of the attempt that counts."""
    return {event["step"]: event["loss"] for event in event_lines(run.events, "step")}


def fed(run: RunDir) -> dict[int, list[int]]:
    """step -> the rows that fed it, over all ranks."""
    return {step: sorted(row for entry in entries for row in entry.rows) for step, entries in read_ledger(run).items()}
