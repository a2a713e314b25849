"""A run from afar: where it is started, handed over to go on by itself, its logs, and a request to stop.

All of it goes through the run directory, so it works from any machine that sees it.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from tunesmith.errors import ExitCode, InputError, RunFault
from tunesmith.launcher.backends.cluster import JOB, Submission
from tunesmith.launcher.clusters import (
    CLUSTERS,
    NAMES,
    cluster_named,
    find_cluster_named,
    shown_place,
    starting_place,
)
from tunesmith.launcher.progress import Progress
from tunesmith.launcher.runs.cluster_jobs import is_at_work, stop_jobs
from tunesmith.launcher.runs.find import phase_of
from tunesmith.rundir.launch import Launch, launch_or_default
from tunesmith.rundir.lock import is_free
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import Status, is_running, read_status

POLL_S = 0.2


def chosen_launch(run: RunDir, on: str | None, address: str | None) -> Launch:
    """Where the run is to be started: as asked, otherwise where it was before. InputError for an unknown name."""
    if on is not None and find_cluster_named(on) is None:
        raise InputError(f"--on takes {', '.join(NAMES)}; given: {on}", remedy="leave it out to stay on this machine")
    addressed = [cluster for cluster in CLUSTERS if cluster.addressed]
    if address is not None and on is not None and not cluster_named(on).addressed:
        raise InputError(
            f"--address names {' or '.join(cluster.addressed for cluster in addressed)}",
            where=f"--on {on}",
            remedy=f"add --on {' or '.join(cluster.name for cluster in addressed)}, or leave it out",
        )
    if on is None and address is not None:
        on = addressed[0].name
    # What is named here is not looked up in a record that may be damaged, or of a back end that is not known.
    before = launch_or_default(run.launch) if on is not None else starting_place(run)[1]
    backend = on or before.backend
    if address is None:
        address = before.address if backend == before.backend else ""
    return Launch(backend, address, os.environ.get(JOB, ""))


def hand_over(submission: Submission, progress: Progress, *, detach: bool) -> ExitCode | None:
    """Let the cluster run the command, or with `detach` a process without a terminal. None where this process is to."""
    run, launch = submission.run, submission.launch
    cluster = cluster_named(launch.backend)
    if not detach and not cluster.takes_over(launch):
        return None
    before = read_status(run.status)
    submitted = cluster.submit(submission)
    for line in (*submitted.lines, *(submitted.hints if detach else ())):
        progress.say(line)
    return ExitCode.DONE if detach else cluster.follow(run, submitted.launch, before, progress)


def stop_run(run: RunDir, wait_s: float) -> str:
    """Ask for the end and wait for it; what to tell. RunFault where it has not ended within wait_s seconds."""
    cluster, _ = starting_place(run)
    if cluster.is_batch and (told := stop_jobs(cluster, run, wait_s)) is not None:
        return told
    status = read_status(run.status)
    if (status is None or not is_running(status)) and is_free(run):
        return f"nothing runs in {run.root}" + (f": the run is {status.phase}" if status else "")
    run.stop_request.touch()
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        status = read_status(run.status)
        if status is not None and not is_running(status) and is_free(run):
            after = f"after step {status.step}"
            if status.phase == "preempted":
                return f"stopped {after}, and the state is saved: `tunesmith resume {run.root}` goes on from there"
            return f"the run has ended ({phase_of(run)}), {after}"
        time.sleep(POLL_S)
    raise RunFault(
        f"the run was asked to stop and still works after {wait_s:g} s",
        where=f"{run.root}: {_phase(status)}",
        remedy="it saves after the step in work: wait longer (--wait), or look at `tunesmith logs`",
    )


def log_lines(
    run: RunDir, path: Path | None = None, *, rank: int = 0, attempt: int | None = None, follow: bool = False
) -> Iterator[str]:
    """The text of a log as it comes; with `follow` until no process works on the run, of every attempt that comes.
    path: of another log than a worker's. Raises InputError where there is none."""
    newest = path is None and attempt is None
    path = path or run.log(attempt or run.logged_attempt() or 1, rank)
    if not path.is_file() and not (follow and is_at_work(run)):
        there = sorted(file.name for file in run.logs.glob("*.log"))
        remedy = f"logs that are there: {', '.join(there)}" if there else "no process of the run has printed anything"
        raise InputError("there is no such log", where=str(path), remedy=remedy)
    position, alive = 0, True
    while alive:
        alive = follow and is_at_work(run)
        later = run.log(run.logged_attempt() or 1, rank) if newest else path  # asked before what is there is read
        if path.is_file():
            with open(path, "rb") as file:
                file.seek(position)
                chunk = file.read()
            position += len(chunk)
            if chunk:
                yield chunk.decode("utf-8", "replace")
        if later != path:
            path, position, alive = later, 0, True
            continue
        time.sleep(POLL_S if alive else 0)


def launcher_log(run: RunDir) -> Path:
    """What a launcher without a terminal printed: a detached one, or the newest job of a batch system."""
    cluster, _ = shown_place(run)
    return cluster.logs(run)


def _phase(status: Status | None) -> str:
    return f"{status.phase}, step {status.step} of {status.total_steps}" if status else "no status"
