"""The run of a job: started, stopped and inspected through its directory alone, no matter which process started it.

<home>/runs/<job id>/   the run directory
<home>/jobs/<job id>/   recipe.yaml, training.jsonl, validation.jsonl, earlier/ (the adapter to continue from),
                        checkpoints/step-N/ (adapters for serving), launch.json (number of starts), launch.log,
                        webhooks.json
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

from tunesmith.errors import ExitCode, TunesmithError
from tunesmith.launcher.clusters import cluster_and_launch_or_default, cluster_named
from tunesmith.launcher.exit_status import log_tail
from tunesmith.launcher.runs.cluster_watch import ClusterWatch
from tunesmith.launcher.runs.remote import stop_run
from tunesmith.rundir.atomic import write_json
from tunesmith.rundir.event_log import read_events
from tunesmith.rundir.events import ErrorEvent
from tunesmith.rundir.faults import fault_point
from tunesmith.rundir.lock import is_free
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import Status, is_running, read_status
from tunesmith.serving.jobs.fault import JobFault

RunState = Literal["absent", "working", "finished", "preempted", "failed", "lost"]
MAX_STARTS = 4
"""Limit of consecutive starts without a step in between; then the job fails."""
STOP_WAIT_S = 5.0


@dataclass(frozen=True)
class ClusterSpec:
    """Where runs are trained: a name of launcher/clusters.py, and the cluster's address or site file."""

    backend: str = "local"
    address: str = ""
    cluster_file: str = ""

    def arguments(self) -> list[str]:
        return cluster_named(self.backend).arguments(self.address, self.cluster_file)

    def is_reachable(self) -> bool:
        return cluster_named(self.backend).is_reachable(self.address)

    @property
    def outlasts_outages(self) -> bool:
        return cluster_named(self.backend).is_batch


class LaunchRecord(TypedDict):
    """`launch.json` of a job. starts: consecutive starts without a step in between. step: of the run at the last start.
    time: of the last start, seconds since the epoch. pid, host: of the launcher."""

    starts: int
    step: int
    time: NotRequired[float]
    pid: NotRequired[int]
    host: NotRequired[str]


class JobRun:
    def __init__(self, directory: Path, run: Path, cluster: ClusterSpec):
        self.directory, self.cluster = directory, cluster
        self.run = RunDir(run)
        self._starting: subprocess.Popen[bytes] | None = None
        self._watch = ClusterWatch(self.run)

    @property
    def recipe(self) -> Path:
        return self.directory / "recipe.yaml"

    @property
    def adapters(self) -> Path:
        """Directory of the converted checkpoints, one subdirectory each."""
        return self.directory / "checkpoints"

    @property
    def status(self) -> Status | None:
        return read_status(self.run.status)

    def state(self) -> RunState:
        """The state of the run, read from its directory. lost: it was started, no process works on it, and it recorded
        no end.

        While the cluster is unreachable, the run is assumed to be working.
        """
        status = self.status
        if self._is_starting() or (status is not None and is_running(status)) or not is_free(self.run):
            return "working"
        if self._watch.may_be_active(status, self._started_at):
            return "working"
        status = self.status  # read again: the final status, now that no process writes it
        if status is None:
            return "lost" if self._starts()["starts"] else "absent"
        if status.phase in ("done", "early_stopped"):
            return "finished"
        if status.phase in ("preempted", "failed"):
            return status.phase
        return "lost"

    def start(self) -> bool:
        """Start or resume the run in a detached process. Returns False once MAX_STARTS is reached.

        Starting a run that is already running has no effect: the run's lock rejects it.
        """
        record, step = self._starts(), self.status.step if self.status else 0
        starts = record["starts"] + 1 if step <= record["step"] else 1
        if starts > MAX_STARTS:
            return False
        launch = {"starts": starts, "step": step, "time": time.time()}
        write_json(self.directory / "launch.json", launch)
        fault_point("job.launch")
        command = ["train", str(self.recipe), "--run-dir", str(self.run.root)]
        with open(self.directory / "launch.log", "ab") as log:
            self._starting = subprocess.Popen(
                [sys.executable, "-P", "-m", "tunesmith.cli.main", *command, "--detach", *self.cluster.arguments()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                start_new_session=True,
            )
        process = {"time": time.time(), "pid": self._starting.pid, "host": os.uname().nodename}
        write_json(self.directory / "launch.json", {**launch, **process})
        fault_point("job.launched")
        return True

    def cluster_job(self) -> tuple[str, str]:
        """(title of the cluster, its id of the job); both empty if the run was started by a local launcher."""
        cluster, launch = cluster_and_launch_or_default(self.run)
        return (cluster.title, launch.job) if launch.job else ("", "")

    def cluster_is_unreachable(self) -> bool:
        """Whether the run cannot be started at present because its cluster does not respond."""
        return self.cluster.outlasts_outages and not self.cluster.is_reachable()

    def launch_error(self) -> str | None:
        """The launcher's error message if it could not start the run; None if it did, or is still starting it."""
        if self._starting is None or (code := self._starting.poll()) is None:
            return None
        if code in (ExitCode.DONE, ExitCode.PREEMPTED) or self.state() == "working":
            return None
        text = "\n".join(log_tail(self.directory / "launch.log", 20))
        return text.rpartition("error: ")[2].strip() or f"the launcher exited with code {code}"

    def request_stop(self) -> bool:
        """Stop the run like `tunesmith stop`: it saves after the current step and exits. True once it has stopped.

        Call repeatedly until then: a launcher that is just starting discards earlier requests.
        """
        try:
            stop_run(self.run, STOP_WAIT_S)
            self._watch.cancel_pending(self.status, self._started_at)
        except TunesmithError:
            return False
        return self.state() != "working"

    def failure(self) -> JobFault:
        """The last error of the run, with the code of its verdict (`training.learning`) if it has one; otherwise the
        end of the launch log."""
        errors = list(read_events(self.run.events, ErrorEvent))
        if errors:
            return JobFault(errors[-1].code or "run_failed", str(errors[-1].what))
        tail = "\n".join(log_tail(self.directory / "launch.log", 3))
        return JobFault("run_failed", tail or "no error message was recorded")

    @property
    def _started_at(self) -> float:
        """Time of the last start, seconds since the epoch."""
        return self._starts().get("time", 0.0)

    def _starts(self) -> LaunchRecord:
        try:
            raw: LaunchRecord = json.loads((self.directory / "launch.json").read_text(encoding="utf-8"))
            return {"starts": 0, "step": 0, **raw}
        except (OSError, ValueError):
            return {"starts": 0, "step": 0}

    def _is_starting(self) -> bool:
        """Whether the last launcher process is still running."""
        if self._starting is not None:
            return self._starting.poll() is None
        record = self._starts()
        pid = record.get("pid")
        if record.get("host") != os.uname().nodename or not pid:
            return False
        return _is_launcher(int(pid), self.run)


def _is_launcher(pid: int, run: RunDir) -> bool:
    """Whether a process is the launcher of this run: process ids are reused."""
    try:
        arguments: Sequence[bytes] = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(run.root) in arguments
