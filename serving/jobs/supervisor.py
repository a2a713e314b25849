"""The process that takes jobs from the store and brings them to their end. Several may run on one store.

    python -P -m tunesmith.serving.jobs.supervisor SETTINGS.json [--parent PID]

A job is worked on by whoever holds its lease. One that was killed loses it within seconds, and another, or the same
begun again, goes on from the run directory. What a stage waits for (a file, a run that saves) keeps no other job
waiting: each is advanced in a thread of its own.
"""

import argparse
import errno
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from tunesmith.launcher.signals import on_signals
from tunesmith.serving.files.blobs import Blobs
from tunesmith.serving.jobs.fault import JobFault
from tunesmith.serving.jobs.stages import JobStages
from tunesmith.serving.settings import Settings
from tunesmith.serving.store.jobs import FINAL
from tunesmith.serving.store.store import Store
from tunesmith.serving.store.tables import Job

LEASE_S, RENEW_S = 4.0, 1.0
"""A job of a killed supervisor is taken up by another after LEASE_S, and at once by one of the same machine."""
TICK_S = 0.2
THREADS = 8
MAX_ERRORS, ERROR_PAUSE_S, MAX_PAUSE_S = 5, 2.0, 30.0
"""Errors of a kind that no stage foresees, in a row, after which a job has failed; and the growing pause between.
A full disk is waited for instead: what was trained is there, and is published once there is room."""
FULL = ("disk is full", "No space left")
"""In the words of SQLite and PostgreSQL."""
_log = logging.getLogger("tunesmith.jobs")


class Held:
    """A job that this process holds. slot: it was claimed while it was queued, so that one of the places is its own."""

    def __init__(self, job: Job, stages: JobStages):
        self.job, self.stages = job, stages
        self.slot = job.status == "queued"
        self.renewed = time.monotonic()
        self.work: Future[None] | None = None
        self.errors, self.failed_at = 0, 0.0

    @property
    def is_busy(self) -> bool:
        return self.work is not None and not self.work.done()

    @property
    def rests(self) -> bool:
        return self.errors > 0 and time.monotonic() - self.failed_at < min(ERROR_PAUSE_S * self.errors, MAX_PAUSE_S)


class Supervisor:
    def __init__(self, store: Store, blobs: Blobs, settings: Settings):
        self.store, self.blobs, self.settings = store, blobs, settings
        self.owner = f"{os.uname().nodename}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._held: dict[str, Held] = {}
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="job")

    def run(self, ended: Callable[[], bool]) -> None:
        """Until `ended` says so. Runs go on without it."""
        self.free_claims_of_the_dead()
        while not ended():
            try:
                self.tick()
            except Exception:  # a store that is locked, or away: it comes back
                _log.exception("the store does not answer")
                time.sleep(ERROR_PAUSE_S)
            time.sleep(TICK_S)
        self.close()

    def tick(self) -> None:
        """Take what is free, and let every job that is held take its next step."""
        while (job := self.store.jobs.claim_next(self.owner, LEASE_S, self.settings.max_jobs)) is not None:
            stages = JobStages(self.store, self.blobs, self.settings, job.id)
            self._held[job.id] = Held(job, stages)
        for job_id, held in list(self._held.items()):
            if not self._keep(job_id, held) or held.is_busy or held.rests:
                continue
            if held.job.status == "queued" and not held.slot:
                self._let_go(job_id)  # for a place it has to be claimed anew
            elif held.job.settled:
                self._let_go(job_id)
            else:
                held.work = self._pool.submit(self._advance, held)

    def close(self) -> None:
        """Give back what is held, so that the next supervisor need not wait for leases to lapse."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for job_id in list(self._held):
            self._let_go(job_id)

    def free_claims_of_the_dead(self) -> None:
        """Leases of supervisors of this machine that do not live any more."""
        for job in self.store.jobs.claimed():
            if job.claim_owner and _is_dead(job.claim_owner):
                self.store.jobs.release(job.id, job.claim_owner)

    def _keep(self, job_id: str, held: Held) -> bool:
        """Bring the job up to date and hold it for longer. False where another took it, or it is gone."""
        due = time.monotonic() - held.renewed > RENEW_S
        job = self.store.jobs.renew(job_id, self.owner, LEASE_S) if due else self.store.jobs.get(job_id)
        if job is None or job.claim_owner != self.owner:
            if not held.is_busy:
                del self._held[job_id]
            return False
        if due:
            held.renewed = time.monotonic()
        held.job = job
        held.slot = held.slot and job.status == "queued"
        return True

    def _let_go(self, job_id: str) -> None:
        del self._held[job_id]
        self.store.jobs.release(job_id, self.owner)

    def _advance(self, held: Held) -> None:
        try:
            held.stages.advance(held.job)
            held.errors = 0
        except Exception as error:
            _log.exception("job %s, %s", held.job.id, held.job.status)
            held.errors, held.failed_at = held.errors + 1, time.monotonic()
            # What it had read of the log, and not told, is read again.
            held.stages = JobStages(self.store, self.blobs, self.settings, held.job.id)
            if _is_full(error):
                held.stages.tell_once_an_hour(held.job, "The server's disk is full: the job waits for room")
            elif held.errors >= MAX_ERRORS and held.job.status not in FINAL:
                told = f"The server could not go on: {type(error).__name__}: {error}"
                held.stages.fail(held.job, JobFault("server_error", told))


def _is_full(error: Exception) -> bool:
    """Whether a disk has no room left, where files lie or where the database does."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, DBAPIError) and any(
        words in str(error.orig) for words in ("disk is full", "No space left")
    )


def _is_dead(owner: str) -> bool:
    host, _, rest = owner.partition(":")
    pid = rest.partition(":")[0]
    if host != os.uname().nodename or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tunesmith.serving.jobs.supervisor")
    parser.add_argument("settings", type=Path, help="the settings as JSON, every path absolute")
    parser.add_argument("--parent", type=int, default=0, help="end when this process is gone")
    given = parser.parse_args(arguments)
    settings = Settings.model_validate_json(given.settings.read_text(encoding="utf-8"))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asked = threading.Event()
    with on_signals(asked.set, (signal.SIGTERM, signal.SIGINT)):
        store = Store(settings.store_url)
        try:
            supervisor = Supervisor(store, Blobs(settings.blobs_url), settings)
            supervisor.run(lambda: asked.is_set() or (given.parent > 0 and os.getppid() != given.parent))
        finally:
            store.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
