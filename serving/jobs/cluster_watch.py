"""Whether a cluster still has to do with a run: what was submitted to it is pending there, or works.

Asked at most every ASK_EVERY_S about one run, whatever the supervisor's pace; and never again once a job is known to
have ended, since its number does not come back.
"""

import time

from tunesmith.launcher.backends.cluster import Cluster, JobState
from tunesmith.launcher.clusters import shown_place
from tunesmith.launcher.runs.cluster_jobs import have_ended
from tunesmith.rundir.launch import Launch
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import FINAL, Status

ASK_EVERY_S = 2.0


class ClusterWatch:
    def __init__(self, run: RunDir):
        self._run = run
        self._about = Launch()
        self._asked_at = 0.0
        self._holds = False
        self._ended = False

    def may_hold_it(self, status: Status | None, begun: float) -> bool:
        """status: of the run, of which no process is known. begun: seconds since the epoch, of its last start."""
        cluster, launch = shown_place(self._run)
        if not launch.job:
            return False
        if launch != self._about:
            self._about, self._asked_at, self._ended = launch, 0.0, False
        if self._ended:
            return False
        if time.monotonic() - self._asked_at >= ASK_EVERY_S:
            self._holds = self._holds_it(cluster, status, begun)
            self._asked_at = time.monotonic()
        return self._holds

    def end_what_waits(self, status: Status | None, begun: float) -> None:
        """End a job that is pending: its run has not begun and sees no request to stop. `stop_run` does so for batch
        systems. Raises TunesmithError where the cluster refuses."""
        cluster, launch = shown_place(self._run)
        if cluster.is_batch or not launch.job or (status is not None and status.heartbeat >= begun):
            return
        if pending := [job for job in cluster.state(self._run) if job.state == JobState.PENDING]:
            cluster.cancel(self._run, pending)
            self._about, self._ended = launch, True

    def _holds_it(self, cluster: Cluster, status: Status | None, begun: float) -> bool:
        has_ended = status is not None and status.phase in FINAL
        if not cluster.requeues and status is not None and status.heartbeat >= begun:
            self._ended = has_ended
            return False  # its run tells of itself
        jobs = cluster.state(self._run)
        if any(job.is_active for job in jobs):
            return True
        self._ended = have_ended(jobs)
        if self._ended or (cluster.requeues and has_ended and status is not None and status.phase != "preempted"):
            return False
        is_unknown = any(job.state == JobState.UNREACHABLE for job in jobs)
        return is_unknown and time.time() - begun < cluster.patience_s
