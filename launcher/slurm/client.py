"""Asking and telling Slurm: sbatch, squeue, sacct, scancel. Every call is an argument list and has a bound in time."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.errors import InputError, RunFault

ANSWER_S = 30.0
ACTIVE = {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "RESIZING"}


@dataclass(frozen=True)
class SlurmState:
    """state: in Slurm's words (PENDING, RUNNING, FAILED, ...). reason: why it waits or ended; may be empty."""

    state: str
    reason: str = ""
    nodes: str = ""

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE

    def __str__(self) -> str:
        words = self.state.lower().replace("_", " ")
        if self.nodes:
            words += f" on {self.nodes}"
        return words + (f" ({self.reason})" if self.reason and self.reason != "None" else "")


def submit(script: str, *, after: Sequence[str] = ()) -> str:
    """Hand a batch script to Slurm: the job's number. after: jobs that must have ended well before.

    Raises InputError where there is no Slurm here, or where it refuses the job, with its own words.
    """
    options = ["--parsable"]
    if after:  # a job whose turn can never come is cancelled instead of waiting for ever
        options += [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"]
    ended = _call("sbatch", *options, text=script)
    if ended is None and shutil.which("sbatch") is not None:
        raise RunFault(
            f"Slurm did not answer within {ANSWER_S:g} s: whether it took the job is not known",
            where="sbatch",
            remedy="look at `squeue --me` before you submit again",
        )
    if ended is None:
        raise InputError(
            "there is no Slurm here: the command sbatch was not found",
            remedy="submit from a login node of the cluster, or leave out --on slurm",
        )
    if ended.returncode:
        raise InputError(
            f"Slurm refused the job: {' '.join(ended.stderr.split()) or 'it said nothing'}",
            where="sbatch",
            remedy="compare the cluster file with `sinfo` and `sacctmgr show associations`",
        )
    return ended.stdout.strip().split(";")[0]


def states(job_ids: Sequence[str]) -> dict[str, SlurmState]:
    """How the jobs stand. What Slurm no longer knows is missing; all are where it does not answer."""
    found: dict[str, SlurmState] = {}
    if not job_ids:
        return found
    for job_id in job_ids:  # one by one: a number that is forgotten makes squeue refuse the whole question
        ended = _call("squeue", "--noheader", "--states=all", "--array", f"--jobs={job_id}", "--format=%i|%T|%r|%N")
        if ended is not None and not ended.returncode:
            _read(ended.stdout, found)
    missing = [job_id for job_id in job_ids if job_id not in found]
    if missing and (ended := _call("sacct", "-nPX", "-j", ",".join(missing), "-o", "JobID,State,Reason,NodeList")):
        _read(ended.stdout, found)
    return {job_id: found[job_id] for job_id in job_ids if job_id in found}


def is_away() -> bool:
    """Whether there is a Slurm here, and its controller does not answer."""
    if shutil.which("scontrol") is None:
        return False
    ended = _call("scontrol", "ping")
    return ended is None or ended.returncode != 0


def cancel(job_ids: Sequence[str]) -> None:
    """Raises RunFault with Slurm's words where it refuses."""
    ended = _call("scancel", *job_ids)
    if ended is None or ended.returncode:
        words = " ".join(ended.stderr.split()) if ended else "the command scancel was not found"
        raise RunFault(f"the jobs could not be cancelled: {words}", where=", ".join(job_ids))


def ask_to_leave(job_id: str) -> None:
    """Let a running job save and leave: its script alone gets the signal, and passes it on."""
    _call("scancel", "--batch", "--signal=TERM", job_id)


def _read(text: str, found: dict[str, SlurmState]) -> None:
    for line in text.splitlines():
        number, state, reason, nodes = [*line.strip().split("|"), "", "", ""][:4]
        words = state.split()  # sacct: `CANCELLED by 0`
        found[number] = SlurmState(words[0] if words else "", reason, "" if nodes.startswith("None") else nodes)


def _call(program: str, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str] | None:
    """None where the program is not there or does not answer in time."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        return subprocess.run([path, *arguments], input=text, capture_output=True, text=True, timeout=ANSWER_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
