"""The run of one job: started, stopped and judged through its directory alone, whoever started it and when.

<home>/runs/<job id>/   the run directory
<home>/jobs/<job id>/   recipe.yaml, training.jsonl, validation.jsonl, earlier/ (the adapter that it goes on from),
                        checkpoints/step-N/ (adapters that are served), launch.json (starts so far), launch.log,
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
from tunesmith.launcher.clusters import cluster_named, shown_place
from tunesmith.launcher.exit_status import log_tail
from tunesmith.launcher.runs.remote import stop_run
from tunesmith.rundir.atomic import write_json
from tunesmith.rundir.commit import fault_point
from tunesmith.rundir.event_log import read_events
from tunesmith.rundir.events import ErrorEvent
from tunesmith.rundir.lock import is_free
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import Status, is_running, read_status
from tunesmith.serving.jobs.cluster_watch import ClusterWatch

Standing = Literal["absent", "working", "finished", "preempted", "failed", "lost"]
MAX_STARTS = 4
"""Starts in a row without a step in between, after which a job whose run is lost each time has failed."""
STOP_WAIT_S = 5.0


@dataclass(frozen=True)
class Place:
    """Where runs are trained: a name of launcher/clusters.py, and the cluster's address or the file of its site."""

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
    """`launch.json` of a job. starts: without a step in between. step: that the run had then. time: of the last start,
    in seconds since the epoch. pid, host: of its launcher."""

    starts: int
    step: int
    time: NotRequired[float]
    pid: NotRequired[int]
    host: NotRequired[str]


class JobRun:
    def __init__(self, directory: Path, run: Path, place: Place):
        self.directory, self.place = directory, place
        self.run = RunDir(run)
        self._starting: subprocess.Popen[bytes] | None = None
        self._watch = ClusterWatch(self.run)

    @property
    def recipe(self) -> Path:
        return self.directory / "recipe.yaml"

    @property
    def adapters(self) -> Path:
        """Of checkpoints, a directory each."""
        return self.directory / "checkpoints"

    @property
    def status(self) -> Status | None:
        return read_status(self.run.status)

    def standing(self) -> Standing:
        """Read from the run directory. lost: it was begun, nobody works on it, and it has not said that it ended.

        Where a cluster does not answer, nobody knows better: then it works.
        """
        status = self.status
        if self._is_starting() or (status is not None and is_running(status)) or not is_free(self.run):
            return "working"
        if self._watch.may_hold_it(status, self._begun):
            return "working"
        status = self.status  # its last word, now that nobody writes it any more
        if status is None:
            return "lost" if self._starts()["starts"] else "absent"
        if status.phase in ("done", "early_stopped"):
            return "finished"
        if status.phase in ("preempted", "failed"):
            return status.phase
        return "lost"

    def start(self) -> bool:
        """Begin the run, or go on with it, in a process that outlives this one; False where that failed too often.

        A second start of a run that is working already is refused by the run's own lock, and harms nothing.
        """
        told, step = self._starts(), self.status.step if self.status else 0
        starts = told["starts"] + 1 if step <= told["step"] else 1
        if starts > MAX_STARTS:
            return False
        launch = {"starts": starts, "step": step, "time": time.time()}
        write_json(self.directory / "launch.json", launch)
        fault_point("job.launch")
        command = ["train", str(self.recipe), "--run-dir", str(self.run.root)]
        with open(self.directory / "launch.log", "ab") as log:
            self._starting = subprocess.Popen(
                [sys.executable, "-P", "-m", "tunesmith.cli.main", *command, "--detach", *self.place.arguments()],
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

    def handed_over(self) -> tuple[str, str]:
        """Who took the run, and what it is called there; both empty where a launcher of this machine works on it."""
        cluster, launch = shown_place(self.run)
        return (cluster.title, launch.job) if launch.job else ("", "")

    def cluster_is_away(self) -> bool:
        """Whether nothing can be started for now, since the cluster that takes it does not answer."""
        return self.place.outlasts_outages and not self.place.is_reachable()

    def refused(self) -> str | None:
        """What the launcher said where it would not start the run at all; None where it did, or is still at it."""
        if self._starting is None or (code := self._starting.poll()) is None:
            return None
        if code in (ExitCode.DONE, ExitCode.PREEMPTED) or self.standing() == "working":
            return None
        text = "\n".join(log_tail(self.directory / "launch.log", 20))
        return text.rpartition("error: ")[2].strip() or f"the launcher ended with exit code {code}"

    def ask_to_stop(self) -> bool:
        """As `tunesmith stop`: it saves after the step in work and ends. True once nothing works on it any more.

        To be asked again until then: a launcher that is only beginning takes an earlier request away.
        """
        try:
            stop_run(self.run, STOP_WAIT_S)
            self._watch.end_what_waits(self.status, self._begun)
        except TunesmithError:
            return False
        return self.standing() != "working"

    def why_failed(self) -> str:
        """The run's own last words."""
        errors = list(read_events(self.run.events, ErrorEvent))
        if errors:
            return str(errors[-1].what)
        return "\n".join(log_tail(self.directory / "launch.log", 3)) or "the run failed without a word"

    @property
    def _begun(self) -> float:
        """Seconds since the epoch: when the run was started last."""
        return self._starts().get("time", 0.0)

    def _starts(self) -> LaunchRecord:
        try:
            raw: LaunchRecord = json.loads((self.directory / "launch.json").read_text(encoding="utf-8"))
            return {"starts": 0, "step": 0, **raw}
        except (OSError, ValueError):
            return {"starts": 0, "step": 0}

    def _is_starting(self) -> bool:
        """Whether the launcher that was started last is still on its way to the run's first step."""
        if self._starting is not None:
            return self._starting.poll() is None
        record = self._starts()
        pid = record.get("pid")
        if record.get("host") != os.uname().nodename or not pid:
            return False
        return _is_launcher(int(pid), self.run)


def _is_launcher(pid: int, run: RunDir) -> bool:
    """Whether the process of that number is one that starts this run."""
    try:
        words: Sequence[bytes] = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(run.root) in words
