"""Whether a run's cluster job is pending or running.

The cluster is queried at most every QUERY_EVERY_S per run, and never again once a job has ended: job ids are not
reused.
"""

import time

from tunesmith.launcher.backends.cluster import Cluster, JobState
from tunesmith.launcher.clusters import cluster_and_launch_or_default
from tunesmith.launcher.runs.cluster_jobs import have_ended
from tunesmith.rundir.launch import Launch
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import FINAL, Status

QUERY_EVERY_S = 2.0


class ClusterWatch:
    def __init__(self, run: RunDir):
        self._run = run
        self._launch = Launch()
        self._queried_at = 0.0
        self._is_active = False
        self._ended = False

    def may_be_active(self, status: Status | None, started_at: float) -> bool:
        """Whether the job may be pending or running.

        status: of a run without a known process. started_at: time of its last start, seconds since the epoch.
        """
        cluster, launch = cluster_and_launch_or_default(self._run)
        if not launch.job:
            return False
        if launch != self._launch:
            self._launch, self._queried_at, self._ended = launch, 0.0, False
        if self._ended:
            return False
        if time.monotonic() - self._queried_at >= QUERY_EVERY_S:
            self._is_active = self._query(cluster, status, started_at)
            self._queried_at = time.monotonic()
        return self._is_active

    def cancel_pending(self, status: Status | None, started_at: float) -> None:
        """Cancel a pending job, whose run cannot react to a stop request. Batch systems are handled by `stop_run`.
        Raises TunesmithError if the cluster refuses."""
        cluster, launch = cluster_and_launch_or_default(self._run)
        if cluster.is_batch or not launch.job or (status is not None and status.heartbeat >= started_at):
            return
        if pending := [job for job in cluster.state(self._run) if job.state == JobState.PENDING]:
            cluster.cancel(self._run, pending)
            self._launch, self._ended = launch, True

    def _query(self, cluster: Cluster, status: Status | None, started_at: float) -> bool:
        has_ended = status is not None and status.phase in FINAL
        if not cluster.requeues and status is not None and status.heartbeat >= started_at:
            self._ended = has_ended
            return False  # the run has started: its heartbeat shows whether it is running
        jobs = cluster.state(self._run)
        if any(job.is_active for job in jobs):
            return True
        self._ended = have_ended(jobs)
        if self._ended or (cluster.requeues and has_ended and status is not None and status.phase != "preempted"):
            return False
        is_unknown = any(job.state == JobState.UNREACHABLE for job in jobs)
        return is_unknown and time.time() - started_at < cluster.patience_s
