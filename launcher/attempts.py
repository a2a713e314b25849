"""What earlier attempts of a run left: its plan, their number, and perhaps a worker that still holds its lock."""

import os
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
from tunesmith.rundir.status import read_status

ORPHAN_WAIT_S = 120.0
"""How long to wait for a worker that saves after its launcher was killed."""


def stored_plan(run: RunDir) -> Plan:
    """The plan of a run that was made before. Raises InputError where it is missing or damaged."""
    try:
        return read_plan(run.plan)
    except OSError:
        raise InputError(
            "the run has no plan: it was never started", where=str(run.root), remedy="start it: tunesmith train RECIPE"
        ) from None
    except ValidationError as error:
        raise InputError(
            f"plan.json is damaged or of another version ({error.error_count()} fields do not fit)",
            where=str(run.plan),
            remedy="restore it, or start a new run with another --run-dir",
        ) from None


def next_attempt(run: RunDir) -> int:
    """The number after the highest that any trace of an earlier attempt has."""
    status = read_status(run.status)
    numbers = [status.attempt if status else 0, newest_attempt(run), run.logged_attempt()]
    numbers += [event.attempt or 0 for event in read_events(run.events, StartEvent)]
    return max(numbers) + 1


def is_finished(run: RunDir) -> bool:
    """Whether the run came to its end; a run that failed in its export did not."""
    status = read_status(run.status)
    if status is not None and status.phase not in ("done", "early_stopped"):
        return False
    return read_record(run).is_finished


@contextmanager
def patient_lock(run: RunDir, say: Callable[[str], None]) -> Iterator[int]:
    """Hold the run's lock, as run_lock does. A worker whose launcher was killed keeps it while it saves: that is waited
    for, and said once."""
    deadline = time.monotonic() + ORPHAN_WAIT_S
    told = False
    while True:
        lock = run_lock(run)
        try:
            fd = lock.__enter__()
            break
        except InputError as error:
            is_held = isinstance(error.__cause__, BlockingIOError)
            if not is_held or _holder_lives(run) or time.monotonic() > deadline:
                raise
        if not told:
            say("an earlier process of this run is still saving; waiting for it")
            told = True
        time.sleep(0.2)
    try:
        yield fd
    finally:
        lock.__exit__(None, None, None)


def _holder_lives(run: RunDir) -> bool:
    """Whether the launcher that took the lock is alive; without a readable pid: yes."""
    try:
        os.kill(int(run.lock.read_text(encoding="ascii")), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError):
        return True
    return True
