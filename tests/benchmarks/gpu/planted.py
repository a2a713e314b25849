"""Stages of the tests, run as a process by the product's command line: `--inside STAGE --record FILE`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.record import Record, Skipped
from benchmarks.gpu.running import Stage, run_inside


def good(record: Record) -> None:
    record.figure("value", 3)
    record.check("it holds", 3, "equals", 3)
    record.goal("fast enough", 2.0, "at most", 1.0)


def hang(record: Record) -> None:
    """Starts a process in a session of its own, and hangs."""
    sleeper = subprocess.Popen(["sleep", "600"], start_new_session=True)
    record.figure("sleeper", sleeper.pid)
    time.sleep(600)


def fault(record: Record) -> None:
    record.figure("before", 1)
    os.kill(os.getpid(), signal.SIGSEGV)


def wrong(record: Record) -> None:
    record.check("two", 1, "equals", 2)


def error(record: Record) -> None:
    raise ValueError("planted")


def empty(record: Record) -> None:
    pass


def left_out(record: Record) -> None:
    raise Skipped("no such program")


def repaired(record: Record) -> None:
    """Fails in its first run only."""
    first = Path(os.environ["PLANTED_FIRST"])
    record.check("second run", first.exists(), "equals", True)
    first.touch()


def runs(record: Record) -> None:
    """Counts its runs."""
    with open(os.environ["PLANTED_RUNS"], "a", encoding="utf-8") as file:
        file.write("ran\n")
    record.figure("ran", 1)


FUNCTIONS = (good, hang, fault, wrong, error, empty, left_out, repaired, runs)
STAGES = {one.__name__: Stage(one.__name__, "", "", 0.5 if one is hang else 20.0, ()) for one in FUNCTIONS}

if __name__ == "__main__":
    name, file = (sys.argv[sys.argv.index(option) + 1] for option in ("--inside", "--record"))
    function = {one.__name__: one for one in FUNCTIONS}[name]
    sys.exit(run_inside(function, Path(file)))
