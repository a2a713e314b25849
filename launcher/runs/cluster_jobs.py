"""The jobs of a run on its cluster: their states, whether any is at work, ending them."""

import time

from tunesmith.errors import RunFault
from tunesmith.launcher.backends.cluster import Cluster, ClusterJob, JobState
from tunesmith.launcher.clusters import shown_place
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import is_running, read_status

POLL_S = 1.0


def jobs_of(run: RunDir) -> list[ClusterJob]:
    """In the order of their stages; empty where the run was not submitted to a batch system."""
    cluster, _ = shown_place(run)
    return cluster.state(run) if cluster.is_batch else []


def is_at_work(run: RunDir) -> bool:
    """Whether a process works on the run, or a job of it waits or runs."""
    status = read_status(run.status)
    if status is not None and is_running(status):
        return True
    return any(job.is_active for job in jobs_of(run))


def have_ended(jobs: list[ClusterJob]) -> bool:
    """Whether the cluster says so of all of them, and there are any."""
    return bool(jobs) and all(job.state == JobState.ENDED for job in jobs)


def job_lines(run: RunDir, jobs: list[ClusterJob]) -> list[tuple[str, str]]:
    """A line for each job: (its name, its state and why). A job that another's failure cancelled says which."""
    cluster, _ = shown_place(run)
    lines, failed = [], None
    for job in jobs:
        is_known = job.state not in (JobState.FORGOTTEN, JobState.UNREACHABLE)
        words = job.description if is_known else "done" if job.has_result else f"no longer known to {cluster.title}"
        ended_badly = job.state == JobState.ENDED and not job.succeeded
        if ended_badly and failed is not None:
            words = f"cancelled, since job {failed.number} ({failed.stage}) did not end well"
        elif job.fault and (ended_badly or not is_known):
            words += f": {job.fault}"
        if ended_badly and failed is None:
            failed = job
        lines.append((f"job {job.number}", f"{job.stage}: {words}"))
    return lines


def stop_jobs(cluster: Cluster, run: RunDir, wait_s: float) -> str | None:
    """End what waits, let what runs save and end; what to tell. None where no job of the run is at work.

    Raises RunFault where one is still at work after wait_s seconds.
    """
    active = [job for job in cluster.state(run) if job.is_active]
    if not active:
        return None
    deadline = time.monotonic() + wait_s
    pending = [job for job in active if job.state == JobState.PENDING]
    if pending:
        cluster.cancel(run, pending)
    for job in active:
        if job not in pending:
            cluster.ask_to_save(run, job)
    while left := [job for job in cluster.state(run) if job.is_active]:
        if time.monotonic() > deadline:
            job = left[0]
            raise RunFault(
                f"job {job.number} was asked to stop and is still {job.description} after {wait_s:g} s",
                where=str(run.root),
                remedy="it saves after the step in work: wait longer (--wait), or end it: "
                f"{cluster.cancel_hint(job.number)}",
            )
        time.sleep(POLL_S)
    status = read_status(run.status)
    if status is not None and status.phase == "preempted":
        saved = f"stopped after step {status.step}, and the state is saved"
        return f"{saved}: `tunesmith resume {run.root}` goes on from there"
    return f"ended: {', '.join(f'job {job.number} ({job.stage})' for job in active)}"
