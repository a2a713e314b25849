"""Whether a cluster still has to do with a run: what was handed over to Slurm or Ray waits there, or works.

Asked at most every ASK_EVERY_S about one run, whatever the supervisor's pace; and never again once a batch job is known
to have ended, since its number does not come back.
"""

import time

from tunesmith.launcher.ray.job import ENDED, end_job, job_state
from tunesmith.launcher.slurm.client import is_away
from tunesmith.launcher.slurm.job_status import have_ended, jobs_of
from tunesmith.rundir.launch import Launch, read_launch
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import FINAL, Status

ASK_EVERY_S = 2.0
RAY_WAIT_S = 900.0
"""Of a Ray job whose cluster does not answer: for the first word of its run."""


class Queue:
    def __init__(self, run: RunDir):
        self._run = run
        self._about = Launch()
        self._asked_at = 0.0
        self._holds = False
        self._ended = False

    def may_hold_it(self, status: Status | None, begun: float) -> bool:
        """status: of the run, of which no process is known. begun: seconds since the epoch, of its last start."""
        launch = read_launch(self._run.launch)
        if not launch.job:
            return False
        if launch != self._about:
            self._about, self._asked_at, self._ended = launch, 0.0, False
        if self._ended:
            return False
        if time.monotonic() - self._asked_at >= ASK_EVERY_S:
            self._holds = self._in_slurm(status) if launch.backend == "slurm" else self._in_ray(launch, status, begun)
            self._asked_at = time.monotonic()
        return self._holds

    def end_what_waits(self, status: Status | None, begun: float) -> None:
        """A Ray job whose run has not begun knows of no request to stop: it is ended where it waits. Slurm's jobs are
        seen to by `stop_run`. One that waits for room is ended by Ray once there is some, before anything else of it.
        Raises TunesmithError where the cluster does not take that."""
        launch = read_launch(self._run.launch)
        waits = launch.backend == "ray" and launch.job and (status is None or status.heartbeat < begun)
        if waits and job_state(launch) == "PENDING":
            end_job(launch)
            self._about, self._ended = launch, True

    def _in_slurm(self, status: Status | None) -> bool:
        jobs = jobs_of(self._run)
        if any(job.is_active for job in jobs):
            return True
        self._ended = have_ended(jobs)
        has_said_it = status is not None and status.phase in FINAL and status.phase != "preempted"
        return not (self._ended or has_said_it) and is_away()

    def _in_ray(self, launch: Launch, status: Status | None, begun: float) -> bool:
        if status is not None and status.heartbeat >= begun:
            self._ended = status.phase in FINAL
            return False  # its run tells of itself
        state = job_state(launch)
        self._ended = state in ENDED
        if state is None:
            return time.time() - begun < RAY_WAIT_S
        return not self._ended
