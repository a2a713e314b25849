"""The local machine as a cluster: the default."""

from collections.abc import Sequence

from tunesmith.launcher.backends.cluster import Cluster, ClusterJob, Submission, Submitted
from tunesmith.rundir.launch import Launch
from tunesmith.rundir.paths import RunDir


class LocalCluster(Cluster):
    """Its jobs are detached launchers; their state is in the run directory."""

    name = "local"
    title = "this machine"

    def takes_over(self, launch: Launch) -> bool:
        return False

    def submit(self, submission: Submission) -> Submitted:
        """Start a detached launcher."""
        from tunesmith.launcher.backends.detached import start_detached

        return start_detached(submission)

    def state(self, run: RunDir) -> list[ClusterJob]:
        return []

    def cancel(self, run: RunDir, jobs: Sequence[ClusterJob]) -> None:
        run.stop_request.touch()

    def is_reachable(self, address: str) -> bool:
        return True
