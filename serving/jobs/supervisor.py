"""The process that claims jobs from the store and processes them until they finish. Several may share a store.

    python -P -m tunesmith.serving.jobs.supervisor SETTINGS.json [--parent PID]

A job is processed by the supervisor that holds its lease. The lease of a killed supervisor expires within seconds;
another one, or the restarted one, then continues from the run directory. Each job is advanced in its own thread, so
that a slow stage (copying a file, stopping a run) does not delay other jobs.
"""

import argparse
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tunesmith.launcher.signals import on_signals
from tunesmith.rundir.processes import is_alive
from tunesmith.serving.files.blobs import Blobs
from tunesmith.serving.home import open_home
from tunesmith.serving.jobs.fault import JobFault
from tunesmith.serving.jobs.stages import JobStages
from tunesmith.serving.settings import Settings
from tunesmith.serving.store.faults import is_full, is_unavailable
from tunesmith.serving.store.jobs import FINAL
from tunesmith.serving.store.store import Store
from tunesmith.serving.store.tables import Job

LEASE_S, RENEW_S = 4.0, 1.0
"""The jobs of a killed supervisor are claimed by another after LEASE_S, and at once by one on the same machine."""
TICK_S = 0.2
THREADS, DELIVERY_THREADS = 8, 8
"""Slow receivers of webhooks occupy only the threads for deliveries."""
MAX_ERRORS, ERROR_PAUSE_S, MAX_PAUSE_S = 5, 2.0, 30.0
"""Limit of consecutive unexpected errors before a job fails, and the increasing pause between attempts. A full disk
or a locked database never fails a job: the trained model is on disk, and is published later."""
_log = logging.getLogger("tunesmith.jobs")


class ClaimedJob:
    """A job claimed by this process. slot: it was claimed while queued, and so occupies a slot."""

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
    def is_backing_off(self) -> bool:
        return self.errors > 0 and time.monotonic() - self.failed_at < min(ERROR_PAUSE_S * self.errors, MAX_PAUSE_S)


class Supervisor:
    def __init__(self, store: Store, blobs: Blobs, settings: Settings):
        self.store, self.blobs, self.settings = store, blobs, settings
        self.owner = f"{os.uname().nodename}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._claimed: dict[str, ClaimedJob] = {}
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="job")
        self._deliveries = ThreadPoolExecutor(DELIVERY_THREADS, thread_name_prefix="webhook")

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Process jobs until `should_stop` returns True. Runs continue afterwards."""
        self.release_stale_claims()
        while not should_stop():
            try:
                self.tick()
            except Exception:  # the store is locked or unreachable for a while
                _log.exception("the store is not responding; retrying in %.0f s", ERROR_PAUSE_S)
                time.sleep(ERROR_PAUSE_S)
            time.sleep(TICK_S)
        self.close()

    def tick(self) -> None:
        """Claim available jobs, and advance every claimed job."""
        while (job := self.store.jobs.claim_next(self.owner, LEASE_S, self.settings.max_jobs)) is not None:
            stages = JobStages(self.store, self.blobs, self.settings, job.id)
            self._claimed[job.id] = ClaimedJob(job, stages)
        for job_id, claimed in list(self._claimed.items()):
            if not self._renew(job_id, claimed) or claimed.is_busy or claimed.is_backing_off:
                continue
            if claimed.job.status == "queued" and not claimed.slot:
                self._release(job_id)  # it must be claimed again to occupy a slot
            elif claimed.job.settled:
                self._release(job_id)
            else:
                pool = self._deliveries if claimed.stages.is_delivering else self._pool
                claimed.work = pool.submit(self._advance, claimed)

    def close(self) -> None:
        """Release all claims, so that the next supervisor need not wait for leases to expire."""
        for pool in (self._pool, self._deliveries):
            pool.shutdown(wait=True, cancel_futures=True)
        for job_id in list(self._claimed):
            self._release(job_id)

    def release_stale_claims(self) -> None:
        """Release the claims of supervisors of this machine that have exited."""
        for job in self.store.jobs.claimed():
            if job.claim_owner and _has_exited(job.claim_owner):
                self.store.jobs.release(job.id, job.claim_owner)

    def _renew(self, job_id: str, claimed: ClaimedJob) -> bool:
        """Refresh the job and extend its lease. Returns False if another supervisor claimed it or it was deleted."""
        due = time.monotonic() - claimed.renewed > RENEW_S
        job = self.store.jobs.renew(job_id, self.owner, LEASE_S) if due else self.store.jobs.get(job_id)
        if job is None or job.claim_owner != self.owner:
            if not claimed.is_busy:
                del self._claimed[job_id]
            return False
        if due:
            claimed.renewed = time.monotonic()
        claimed.job = job
        claimed.slot = claimed.slot and job.status == "queued"
        return True

    def _release(self, job_id: str) -> None:
        del self._claimed[job_id]
        self.store.jobs.release(job_id, self.owner)

    def _advance(self, claimed: ClaimedJob) -> None:
        try:
            claimed.stages.advance(claimed.job)
            claimed.errors = 0
        except Exception as error:
            _log.exception("job %s, %s", claimed.job.id, claimed.job.status)
            claimed.errors, claimed.failed_at = claimed.errors + 1, time.monotonic()
            # A new object reads the log again, including what was read but not written to the store.
            claimed.stages = JobStages(self.store, self.blobs, self.settings, claimed.job.id)
            if is_full(error):
                claimed.stages.warn_once_an_hour(claimed.job, "The server's disk is full: the job waits for free space")
            elif is_unavailable(error):
                return
            elif claimed.errors >= MAX_ERRORS and claimed.job.status not in FINAL:
                message = f"The server could not continue: {type(error).__name__}: {error}"
                claimed.stages.fail(claimed.job, JobFault("server_error", message))


def _has_exited(owner: str) -> bool:
    host, _, rest = owner.partition(":")
    pid = rest.partition(":")[0]
    if host != os.uname().nodename or not pid.isdigit():
        return False
    return not is_alive(int(pid))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tunesmith.serving.jobs.supervisor")
    parser.add_argument("settings", type=Path, help="the settings as JSON, every path absolute")
    parser.add_argument("--parent", type=int, default=0, help="exit when this process has exited")
    options = parser.parse_args(arguments)
    settings = Settings.model_validate_json(options.settings.read_text(encoding="utf-8"))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    open_home(settings.home)
    stop = threading.Event()
    with on_signals(stop.set, (signal.SIGTERM, signal.SIGINT)):
        store = Store(settings.store_url)
        try:
            supervisor = Supervisor(store, Blobs(settings.blobs_url), settings)
            supervisor.run(lambda: stop.is_set() or (options.parent > 0 and os.getppid() != options.parent))
        finally:
            store.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
