"""The batch jobs of a run, from afar: how they stand, whether any is at work, ending them."""

import json
import time
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import RunFault
from tunesmith.launcher.slurm.client import JobState, ask_to_leave, cancel, states
from tunesmith.rundir.job import read_job
from tunesmith.rundir.launch import read_launch
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import is_running, read_status

POLL_S = 1.0


@dataclass(frozen=True)
class RunJob:
    """state: None where Slurm has forgotten the job. fault: what the stage wrote down when it failed. done: whether it
    left its result."""

    stage: str
    number: str
    state: JobState | None
    fault: dict[str, Any]
    done: bool

    @property
    def is_active(self) -> bool:
        return self.state is not None and self.state.is_active

    def as_json(self) -> dict[str, Any]:
        told = {"state": self.state.state, "reason": self.state.reason, "nodes": self.state.nodes} if self.state else {}
        return {"stage": self.stage, "job": self.number, **told, "fault": self.fault.get("what")}


def jobs_of(run: RunDir) -> list[RunJob]:
    """In the order of their stages; empty where the run was not submitted."""
    record = read_job(run)
    if record is None or read_launch(run.launch).backend != "slurm":
        return []
    found = states(list(record.stages.values()))
    return [
        RunJob(stage, number, found.get(number), _fault(run, stage, number), run.result(stage, number).is_file())
        for stage, number in record.stages.items()
    ]


def is_at_work(run: RunDir) -> bool:
    """Whether a process works on the run, or a job of it waits or runs."""
    status = read_status(run.status)
    if status is not None and is_running(status):
        return True
    return any(job.is_active for job in jobs_of(run))


def have_ended(jobs: list[RunJob]) -> bool:
    """Whether Slurm says so of all of them, and there are any."""
    return bool(jobs) and all(job.state is not None and not job.is_active for job in jobs)


def in_words(jobs: list[RunJob]) -> list[tuple[str, str]]:
    """A line for each job: (its name, how it stands and why). A job that another's failure cancelled says which."""
    lines, failed = [], None
    for job in jobs:
        words = str(job.state) if job.state else "done" if job.done else "no longer known to Slurm"
        ended = job.state is not None and not job.state.is_active and job.state.state != "COMPLETED"
        if ended and failed is not None:
            words = f"cancelled, since job {failed.number} ({failed.stage}) did not end well"
        elif job.fault and (ended or job.state is None):
            words += f": {job.fault.get('what')}"
        if ended and failed is None:
            failed = job
        lines.append((f"job {job.number}", f"{job.stage}: {words}"))
    return lines


def stop_jobs(run: RunDir, wait_s: float) -> str | None:
    """End what waits, let what runs save and leave; what to tell. None where no job of the run is at work.

    Raises RunFault where one is still at work after wait_s seconds.
    """
    active = [job for job in jobs_of(run) if job.is_active]
    if not active:
        return None
    deadline = time.monotonic() + wait_s
    waiting = [job.number for job in active if job.state and job.state.state == "PENDING"]
    if waiting:
        cancel(waiting)
    for job in active:
        if job.number not in waiting:
            ask_to_leave(job.number)
    while left := [job for job in jobs_of(run) if job.is_active]:
        if time.monotonic() > deadline:
            job = left[0]
            raise RunFault(
                f"job {job.number} was asked to stop and is still {job.state} after {wait_s:g} s",
                where=str(run.root),
                remedy=f"it saves after the step in work: wait longer (--wait), or end it: scancel {job.number}",
            )
        time.sleep(POLL_S)
    status = read_status(run.status)
    if status is not None and status.phase == "preempted":
        saved = f"stopped after step {status.step}, and the state is saved"
        return f"{saved}: `tunesmith resume {run.root}` goes on from there"
    return f"ended: {', '.join(f'job {job.number} ({job.stage})' for job in active)}"


def _fault(run: RunDir, stage: str, number: str) -> dict[str, Any]:
    try:
        raw = json.loads((run.fault(stage, number)).read_text(encoding="utf-8"))
        return raw if isinstance(raw, dict) else {}
    except (OSError, ValueError):
        return {}
