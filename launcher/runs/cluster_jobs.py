"""The jobs of a run on its cluster: their states, whether any is active, and stopping them."""

import time

from tunesmith.errors import RunFault
from tunesmith.launcher.backends.cluster import Cluster, ClusterJob, JobState
from tunesmith.launcher.clusters import cluster_and_launch_or_default
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import is_running, read_status

POLL_S = 1.0


def jobs_of(run: RunDir) -> list[ClusterJob]:
    """The jobs in stage order; empty if the run was not submitted to a batch system."""
    cluster, _ = cluster_and_launch_or_default(run)
    return cluster.state(run) if cluster.is_batch else []


def is_active(run: RunDir) -> bool:
    """Whether a process is working on the run, or a job of it is pending or running."""
    status = read_status(run.status)
    if status is not None and is_running(status):
        return True
    return any(job.is_active for job in jobs_of(run))


def have_ended(jobs: list[ClusterJob]) -> bool:
    """Whether there are jobs and the cluster reports all of them as ended."""
    return bool(jobs) and all(job.state == JobState.ENDED for job in jobs)


def job_lines(run: RunDir, jobs: list[ClusterJob]) -> list[tuple[str, str]]:
    """One line per job: (ID, stage with state and cause). A job cancelled because another failed names that job."""
    cluster, _ = cluster_and_launch_or_default(run)
    lines, failed = [], None
    for job in jobs:
        is_known = job.state not in (JobState.FORGOTTEN, JobState.UNREACHABLE)
        state = job.description if is_known else "done" if job.has_result else f"no longer known to {cluster.title}"
        ended_badly = job.state == JobState.ENDED and not job.succeeded
        if ended_badly and failed is not None:
            state = f"cancelled, since job {failed.number} ({failed.stage}) failed"
        elif job.fault and (ended_badly or not is_known):
            state += f": {job.fault}"
        if ended_badly and failed is None:
            failed = job
        lines.append((f"job {job.number}", f"{job.stage}: {state}"))
    return lines


def stop_jobs(cluster: Cluster, run: RunDir, wait_s: float) -> str | None:
    """Cancel pending jobs, stop running ones after they have saved, and return a message. None if no job is active.

    Raises RunFault if one is still active after wait_s seconds.
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
            cluster.request_stop(run, job)
    while remaining := [job for job in cluster.state(run) if job.is_active]:
        if time.monotonic() > deadline:
            job = remaining[0]
            raise RunFault(
                f"job {job.number} was asked to stop but is still {job.description} after {wait_s:g} s",
                where=str(run.root),
                remedy="it saves after the current step: wait longer (--wait), or cancel it: "
                f"{cluster.cancel_hint(job.number)}",
            )
        time.sleep(POLL_S)
    status = read_status(run.status)
    if status is not None and status.phase == "preempted":
        saved = f"stopped after step {status.step}, and the state is saved"
        return f"{saved}: `tunesmith resume {run.root}` continues it"
    return f"ended: {', '.join(f'job {job.number} ({job.stage})' for job in active)}"
