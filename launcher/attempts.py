"""State left by earlier attempts of a run: the plan, the number of attempts, a worker that still holds the lock."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from tunesmith.configs.plan import Plan, read_plan
from tunesmith.errors import InputError
from tunesmith.report.record import read_record
from tunesmith.rundir.event_log import read_events
from tunesmith.rundir.events import StartEvent
from tunesmith.rundir.fence import newest_attempt
from tunesmith.rundir.lock import run_lock
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.processes import is_alive
from tunesmith.rundir.status import read_status

ORPHAN_WAIT_S = 120.0
"""Time limit for a worker that saves its state after its launcher was killed."""


def stored_plan(run: RunDir) -> Plan:
    """Read the plan of an existing run. Raises InputError if it is missing or damaged."""
    try:
        return read_plan(run.plan)
    except OSError:
        raise InputError(
            "the run was never started: it has no plan", where=str(run.root), remedy="start it: tunesmith train RECIPE"
        ) from None
    except ValidationError as error:
        raise InputError(
            f"plan.json is damaged or from another version ({error.error_count()} invalid fields)",
            where=str(run.plan),
            remedy="restore it, or start a new run with another --run-dir",
        ) from None


def next_attempt(run: RunDir) -> int:
    """One more than the highest attempt number in status, fence, logs and events."""
    status = read_status(run.status)
    numbers = [status.attempt if status else 0, newest_attempt(run), run.logged_attempt()]
    numbers += [event.attempt or 0 for event in read_events(run.events, StartEvent)]
    return max(numbers) + 1


def is_finished(run: RunDir) -> bool:
    """Whether the run is complete, including its export."""
    status = read_status(run.status)
    if status is not None and status.phase not in ("done", "early_stopped"):
        return False
    return read_record(run).is_finished


@contextmanager
def wait_for_lock(run: RunDir, print_line: Callable[[str], None]) -> Iterator[int]:
    """Hold the run's lock like `run_lock`, but wait (and print so once) for a worker that keeps the lock while it saves
    because its launcher was killed."""
    deadline = time.monotonic() + ORPHAN_WAIT_S
    is_announced = False
    while True:
        lock = run_lock(run)
        try:
            fd = lock.__enter__()
            break
        except InputError as error:
            is_held = isinstance(error.__cause__, BlockingIOError)
            if not is_held or _is_holder_running(run) or time.monotonic() > deadline:
                raise
        if not is_announced:
            print_line("waiting for an earlier process of this run, which is still saving its state")
            is_announced = True
        time.sleep(0.2)
    try:
        yield fd
    finally:
        lock.__exit__(None, None, None)


def _is_holder_running(run: RunDir) -> bool:
    """Whether the launcher that took the lock is running; True if its pid cannot be read."""
    try:
        holder, taken_at = int(run.lock.read_text(encoding="ascii")), run.lock.stat().st_mtime
    except (OSError, ValueError):
        return True
    return is_alive(holder, taken_at)
