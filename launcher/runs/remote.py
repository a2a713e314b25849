"""Remote control of a run: where it is started, submitting or detaching it, its logs, and stopping it.

Everything goes through the run directory, so it works from any machine that can access it.
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
    cluster_and_launch,
    cluster_and_launch_or_default,
    cluster_named,
    find_cluster_named,
)
from tunesmith.launcher.progress import Progress
from tunesmith.launcher.runs.cluster_jobs import is_active, stop_jobs
from tunesmith.launcher.runs.find import phase_of
from tunesmith.rundir.launch import Launch, launch_or_default
from tunesmith.rundir.lock import is_free
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import Status, is_running, read_status

POLL_S = 0.2


def chosen_launch(run: RunDir, on: str | None, address: str | None) -> Launch:
    """Where to start the run: as given by --on and --address, otherwise where it was started before. Raises InputError
    for an unknown name."""
    if on is not None and find_cluster_named(on) is None:
        raise InputError(f"--on takes {', '.join(NAMES)}; got {on}", remedy="omit it to run on this machine")
    addressed = [cluster for cluster in CLUSTERS if cluster.addressed]
    if address is not None and on is not None and not cluster_named(on).addressed:
        raise InputError(
            f"--address is only for {' or '.join(cluster.addressed for cluster in addressed)}",
            where=f"--on {on}",
            remedy=f"add --on {' or '.join(cluster.name for cluster in addressed)}, or omit --address",
        )
    if on is None and address is not None:
        on = addressed[0].name
    # With --on, launch.json may be damaged or name an unknown back end.
    before = launch_or_default(run.launch) if on is not None else cluster_and_launch(run)[1]
    backend = on or before.backend
    if address is None:
        address = before.address if backend == before.backend else ""
    return Launch(backend, address, os.environ.get(JOB, ""))


def submit_or_detach(submission: Submission, progress: Progress, *, detach: bool) -> ExitCode | None:
    """Submit the command to the cluster, or start a detached process (`detach`). None if this process must run it."""
    run, launch = submission.run, submission.launch
    cluster = cluster_named(launch.backend)
    if not detach and not cluster.takes_over(launch):
        return None
    before = read_status(run.status)
    submitted = cluster.submit(submission)
    for line in (*submitted.lines, *(submitted.hints if detach else ())):
        progress.print(line)
    return ExitCode.DONE if detach else cluster.follow(run, submitted.launch, before, progress)


def stop_run(run: RunDir, wait_s: float) -> str:
    """Request a stop, wait for it and return a message. Raises RunFault if the run has not ended within wait_s
    seconds."""
    cluster, _ = cluster_and_launch(run)
    if cluster.is_batch and (message := stop_jobs(cluster, run, wait_s)) is not None:
        return message
    status = read_status(run.status)
    if (status is None or not is_running(status)) and is_free(run):
        return f"nothing is running in {run.root}" + (f": the run is {status.phase}" if status else "")
    run.stop_request.touch()
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        status = read_status(run.status)
        if status is not None and not is_running(status) and is_free(run):
            after = f"after step {status.step}"
            if status.phase == "preempted":
                return f"stopped {after}, and the state is saved: `tunesmith resume {run.root}` continues it"
            return f"the run has ended ({phase_of(run)}), {after}"
        time.sleep(POLL_S)
    raise RunFault(
        f"the run was asked to stop but is still running after {wait_s:g} s",
        where=f"{run.root}: {_phase(status)}",
        remedy="it saves after the current step: wait longer (--wait), or check `tunesmith logs`",
    )


def log_lines(
    run: RunDir, path: Path | None = None, *, rank: int = 0, attempt: int | None = None, follow: bool = False
) -> Iterator[str]:
    """Yield the text of a log; with `follow` as it is written, including later attempts, until no process works on the
    run. path: a log other than a worker's. Raises InputError if the log does not exist."""
    newest = path is None and attempt is None
    path = path or run.log(attempt or run.logged_attempt() or 1, rank)
    if not path.is_file() and not (follow and is_active(run)):
        existing = sorted(file.name for file in run.logs.glob("*.log"))
        remedy = f"existing logs: {', '.join(existing)}" if existing else "no process of the run has printed anything"
        raise InputError("log not found", where=str(path), remedy=remedy)
    position, active = 0, True
    while active:
        active = follow and is_active(run)
        later = run.log(run.logged_attempt() or 1, rank) if newest else path  # determined before reading
        if path.is_file():
            with open(path, "rb") as file:
                file.seek(position)
                chunk = file.read()
            position += len(chunk)
            if chunk:
                yield chunk.decode("utf-8", "replace")
        if later != path:
            path, position, active = later, 0, True
            continue
        time.sleep(POLL_S if active else 0)


def launcher_log(run: RunDir) -> Path:
    """Log of the detached launcher, or of the latest job of a batch system."""
    cluster, _ = cluster_and_launch_or_default(run)
    return cluster.logs(run)


def _phase(status: Status | None) -> str:
    return f"{status.phase}, step {status.step} of {status.total_steps}" if status else "no status"
