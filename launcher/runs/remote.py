"""A run from afar: where it is started, handed over to go on by itself, its logs, and a request to stop.

All of it goes through the run directory, so it works from any machine that sees it.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tunesmith.errors import ExitCode, InputError, RunFault
from tunesmith.launcher.exit_status import log_tail
from tunesmith.launcher.progress import Progress
from tunesmith.launcher.ray.job import JOB, follow_job, submit_job
from tunesmith.launcher.runs.find import phase_of
from tunesmith.launcher.slurm.job_status import is_at_work, stop_jobs
from tunesmith.rundir.launch import BACKENDS, Launch, read_launch
from tunesmith.rundir.lock import is_free
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import FINAL, Status, is_running, read_status

POLL_S = 0.2
BEGIN_S = 300.0
"""How long a detached launcher may take until the first worker lives; it goes on in any case."""


def chosen_launch(run: RunDir, on: str | None, address: str | None) -> Launch:
    """Where the run is to be started: as asked, otherwise where it was before. InputError for an unknown word."""
    before = read_launch(run.launch)
    if on is not None and on not in BACKENDS:
        raise InputError(
            f"--on takes {', '.join(BACKENDS)}; given: {on}", remedy="leave it out to stay on this machine"
        )
    if address is not None and on not in (None, "ray"):
        raise InputError("--address names a Ray cluster", where=f"--on {on}", remedy="add --on ray, or leave it out")
    backend = on or ("ray" if address is not None else before.backend)
    if address is None:
        address = before.address if backend == before.backend else ""
    return Launch(backend, address, os.environ.get(JOB, ""))


def hand_over(
    run: RunDir, launch: Launch, command: Sequence[str], progress: Progress, *, detach: bool
) -> ExitCode | None:
    """Let another process run the command: a Ray job where the address is a cluster's for jobs, or a detached one here.

    None where this process is to do it. command: of `tunesmith`, with absolute paths.
    """
    if launch.backend == "ray" and launch.address.startswith(("http://", "https://")) and not launch.job:
        before = read_status(run.status)
        submitted = submit_job(run, launch, command)
        progress.say(f"handed over to the cluster at {launch.address} as job {submitted.job}")
        if detach:
            _say_where(run, progress)
            return ExitCode.DONE
        return follow_job(run, submitted, before, progress)
    if not detach:
        return None
    place = ["--on", launch.backend, *(["--address", launch.address] if launch.address else [])]
    _start_detached(run, [*command, *place], progress)
    return ExitCode.DONE


def stop_run(run: RunDir, wait_s: float) -> str:
    """Ask for the end and wait for it; what to tell. RunFault where it has not ended within wait_s seconds."""
    if (told := stop_jobs(run, wait_s)) is not None:
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
    """What a launcher without a terminal said: a detached one, or the newest life of a batch job."""
    lives = sorted(run.logs.glob("job-*-life-[0-9][0-9][0-9].log"), key=lambda path: path.stat().st_mtime)
    return lives[-1] if lives else run.launcher_log


def _start_detached(run: RunDir, command: Sequence[str], progress: Progress) -> None:
    """Start the launcher in a session of its own. Returns once it trains; what it refuses at once is raised here."""
    run.logs.mkdir(parents=True, exist_ok=True)
    before = read_status(run.status)
    size_before = run.launcher_log.stat().st_size if run.launcher_log.is_file() else 0
    with open(run.launcher_log, "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tunesmith.cli.main", *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + BEGIN_S
    while time.monotonic() < deadline:
        if (code := process.poll()) is not None:
            if code in (ExitCode.DONE, ExitCode.PREEMPTED):
                break
            said = _words(run.launcher_log, size_before)
            kind = InputError if code == ExitCode.BAD_INPUT else RunFault
            raise kind(said or f"the launcher ended with exit code {code}", where=str(run.launcher_log))
        status = read_status(run.status)
        if status is not None and status != before and status.phase not in ("preparing", *FINAL):
            break
        time.sleep(POLL_S)
    progress.say(f"the run goes on by itself (launcher: pid {process.pid}, {os.uname().nodename})")
    _say_where(run, progress)


def _say_where(run: RunDir, progress: Progress) -> None:
    progress.say(f"  how it stands: tunesmith status {run.root} --follow")
    progress.say(f"  its words:     tunesmith logs {run.root} --follow")
    progress.say(f"  save and end:  tunesmith stop {run.root}")


def _words(path: Path, offset: int) -> str:
    """The error that a launcher ended with, from its log."""
    text = path.read_bytes()[offset:].decode("utf-8", "replace")
    _, found, error = text.rpartition("error: ")
    return error.strip() if found else "\n".join(log_tail(path))


def _phase(status: Status | None) -> str:
    return f"{status.phase}, step {status.step} of {status.total_steps}" if status else "no status"
