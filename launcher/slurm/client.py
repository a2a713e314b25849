"""Calls of Slurm's commands: sbatch, squeue, sacct, scancel. Each is an argument list with a timeout."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.errors import InputError, RunFault

ANSWER_S = 30.0
ACTIVE = {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "RESIZING"}


@dataclass(frozen=True)
class SlurmState:
    """state: Slurm's state (PENDING, RUNNING, FAILED, ...). reason: why the job waits or ended; may be empty."""

    state: str
    reason: str = ""
    nodes: str = ""

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE

    def __str__(self) -> str:
        text = self.state.lower().replace("_", " ")
        if self.nodes:
            text += f" on {self.nodes}"
        return text + (f" ({self.reason})" if self.reason and self.reason != "None" else "")


def submit(script: str, *, after: Sequence[str] = ()) -> str:
    """Submit a batch script to Slurm; return the job ID. after: jobs that must have succeeded before.

    Raises InputError if Slurm is not installed or rejects the job, with its message.
    """
    options = ["--parsable"]
    if after:  # cancel a job that can never start instead of letting it wait forever
        options += [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"]
    ended = _call("sbatch", *options, text=script)
    if ended is None and shutil.which("sbatch") is not None:
        raise RunFault(
            f"Slurm did not respond within {ANSWER_S:g} s; the job may or may not be submitted",
            where="sbatch",
            remedy="check `squeue --me` before you submit again",
        )
    if ended is None:
        raise InputError(
            "Slurm is not installed here: command sbatch not found",
            remedy="submit from a login node of the cluster, or omit --on slurm",
        )
    if ended.returncode:
        raise InputError(
            f"Slurm rejected the job: {' '.join(ended.stderr.split()) or 'no error message'}",
            where="sbatch",
            remedy="compare the cluster file with `sinfo` and `sacctmgr show associations`",
        )
    return ended.stdout.strip().split(";")[0]


def states(job_ids: Sequence[str]) -> dict[str, SlurmState]:
    """The states of jobs. Jobs unknown to Slurm are missing; all are missing if Slurm does not respond."""
    known: dict[str, SlurmState] = {}
    if not job_ids:
        return known
    for job_id in job_ids:  # one by one: an unknown ID makes squeue reject the whole query
        ended = _call("squeue", "--noheader", "--states=all", "--array", f"--jobs={job_id}", "--format=%i|%T|%r|%N")
        if ended is not None and not ended.returncode:
            _read(ended.stdout, known)
    missing = [job_id for job_id in job_ids if job_id not in known]
    if missing and (ended := _call("sacct", "-nPX", "-j", ",".join(missing), "-o", "JobID,State,Reason,NodeList")):
        _read(ended.stdout, known)
    return {job_id: known[job_id] for job_id in job_ids if job_id in known}


def is_unreachable() -> bool:
    """Whether Slurm is installed but its controller does not respond."""
    if shutil.which("scontrol") is None:
        return False
    ended = _call("scontrol", "ping")
    return ended is None or ended.returncode != 0


def cancel(job_ids: Sequence[str]) -> None:
    """Cancel jobs. Raises RunFault with Slurm's message if it refuses."""
    ended = _call("scancel", *job_ids)
    if ended is None or ended.returncode:
        message = " ".join(ended.stderr.split()) if ended else "command scancel not found"
        raise RunFault(f"the jobs could not be cancelled: {message}", where=", ".join(job_ids))


def signal_stop(job_id: str) -> None:
    """Let a running job save and exit: only its batch script gets the signal, which it forwards."""
    _call("scancel", "--batch", "--signal=TERM", job_id)


def _read(text: str, states: dict[str, SlurmState]) -> None:
    for line in text.splitlines():
        number, state, reason, nodes = [*line.strip().split("|"), "", "", ""][:4]
        parts = state.split()  # sacct: `CANCELLED by 0`
        states[number] = SlurmState(parts[0] if parts else "", reason, "" if nodes.startswith("None") else nodes)


def _call(program: str, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str] | None:
    """Run a command; None if it is not installed or times out."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        return subprocess.run([path, *arguments], input=text, capture_output=True, text=True, timeout=ANSWER_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
