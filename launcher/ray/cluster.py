"""Ray as a cluster: a run is driven by this process, or submitted as a job if the address is that of the job server."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunesmith.errors import ExitCode
from tunesmith.launcher.backends.cluster import Cluster, ClusterJob, JobState, Submission, Submitted, hints
from tunesmith.rundir.launch import Launch, launch_or_default
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import Status

if TYPE_CHECKING:
    from tunesmith.launcher.backends.base import Backend
    from tunesmith.launcher.progress import Progress

ANSWER_S = 10.0


class RayCluster(Cluster):
    """The state of a started run is in its run directory; the cluster is queried for jobs that have not started."""

    name = "ray"
    title = "the Ray cluster"
    addressed = "a Ray cluster"
    patience_s = 900.0

    def open(self, launch: Launch) -> "Backend":
        from tunesmith.launcher.ray.backend import RayBackend

        return RayBackend(launch.address)

    def takes_over(self, launch: Launch) -> bool:
        return launch.address.startswith(("http://", "https://")) and not launch.job

    def submit(self, submission: Submission) -> Submitted:
        """Submit a job to the cluster, or start a detached launcher if the address does not accept jobs."""
        from tunesmith.launcher.backends.detached import start_detached
        from tunesmith.launcher.ray.job import submit_job

        run, launch = submission.run, submission.launch
        if not self.takes_over(launch):
            return start_detached(submission)
        launch = submit_job(run, launch, submission.placed_command)
        line = f"submitted to the Ray cluster at {launch.address} as job {launch.job}"
        return Submitted(launch, (line,), hints(run))

    def follow(self, run: RunDir, launch: Launch, before: Status | None, progress: "Progress") -> ExitCode:
        from tunesmith.launcher.ray.job import follow_job

        return follow_job(run, launch, before, progress)

    def state(self, run: RunDir) -> list[ClusterJob]:
        """A job unknown to Ray counts as unreachable: a restarted cluster responds before it has restored its jobs."""
        from tunesmith.launcher.ray.job import ENDED, job_state

        launch = launch_or_default(run.launch)
        if not launch.job:
            return []
        raw = job_state(launch)
        if raw is None:
            return [ClusterJob("train", launch.job, JobState.UNREACHABLE)]
        states = {"PENDING": JobState.PENDING, **dict.fromkeys(ENDED, JobState.ENDED)}
        state = states.get(raw, JobState.RUNNING)
        return [ClusterJob("train", launch.job, state, raw.lower(), raw == "SUCCEEDED", details={"state": raw})]

    def cancel(self, run: RunDir, jobs: Sequence[ClusterJob]) -> None:
        """Ray stops a job that waits for resources once they are available, before it runs."""
        from tunesmith.launcher.ray.job import end_job

        for _ in jobs:
            end_job(launch_or_default(run.launch))

    def is_reachable(self, address: str) -> bool:
        """Whether a server listens at host and port; True without these, since only connecting can tell."""
        import socket
        from urllib.parse import urlsplit

        parts = urlsplit(address if "://" in address else f"//{address}")
        if not parts.hostname or not parts.port:
            return True
        try:
            socket.create_connection((parts.hostname, parts.port), timeout=ANSWER_S).close()
        except OSError:
            return False
        return True
