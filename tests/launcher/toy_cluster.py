"""A minimal cluster: a directory that a script polls (toy_poller.py). Jobs and their states are files.

test_toy_cluster.py copies this file into a copy of the tree, as a contributor would add a cluster.
"""

import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from tunesmith.launcher.backends.cluster import Cluster, ClusterJob, JobState, Submission, Submitted, hints, queued
from tunesmith.rundir.atomic import write_json
from tunesmith.rundir.launch import Launch, launch_or_default
from tunesmith.rundir.paths import RunDir

ALIVE_S = 3.0


class ToyCluster(Cluster):
    name = "toy"
    title = "the toy cluster"
    addressed = "a directory that a script polls"
    is_batch = True

    def submit(self, submission: Submission) -> Submitted:
        run = submission.run
        launch = Launch(self.name, submission.launch.address, f"{run.name}-{uuid.uuid4().hex[:8]}")
        run.create()
        with queued([run]):
            launch.write(run.launch)
            command = [sys.executable, "-P", "-m", "tunesmith.cli.main", *submission.placed_command]
            write_json(_place(launch).with_suffix(".json"), {"command": command, "directory": str(Path.cwd())})
        result = {"run": str(run.root), "jobs": {"train": launch.job}}
        return Submitted(launch, (f"submitted: job {launch.job}",), hints(run), result)

    def state(self, run: RunDir) -> list[ClusterJob]:
        launch = launch_or_default(run.launch)
        if not launch.job:
            return []
        place = _place(launch)
        if not place.with_suffix(".json").is_file():
            return [ClusterJob("train", launch.job, JobState.FORGOTTEN)]
        try:
            word, _, code = place.with_suffix(".state").read_text().partition(" ")
        except OSError:
            word, code = "pending", ""
        state = JobState(word)
        if state != JobState.ENDED and not self.is_reachable(launch.address):
            state = JobState.UNREACHABLE
        return [ClusterJob("train", launch.job, state, word, code == "0", details={"state": word})]

    def cancel(self, run: RunDir, jobs: Sequence[ClusterJob]) -> None:
        _place(launch_or_default(run.launch)).with_suffix(".cancel").touch()

    def logs(self, run: RunDir) -> Path:
        return _place(launch_or_default(run.launch)).with_suffix(".log")

    def is_reachable(self, address: str) -> bool:
        alive = Path(address, "alive")
        return alive.exists() and time.time() - alive.stat().st_mtime < ALIVE_S


def _place(launch: Launch) -> Path:
    return Path(launch.address, launch.job)
