"""Runs a job on this machine: in this process, or in several of its own that pull from the job's queue.

Other launchers start `python -m tunesmith.evaluation.worker JOB_DIR` wherever they like and then `require_done`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tunesmith.errors import InputError, RunFault
from tunesmith.evaluation.job import EvaluationJob
from tunesmith.evaluation.work_queue import Queue
from tunesmith.evaluation.worker import work

WORKER = "tunesmith.evaluation.worker"
POLL_S = 0.2


def run_job(
    job: EvaluationJob, directory: Path, *, workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> None:
    """Do what is not done of the job. progress: (batches done, batches in all).

    Raises InputError and RunFault as loading and scoring do, RunFault where every process ended before the job did.
    """
    queue = job.open(directory)
    (directory / "error.json").unlink(missing_ok=True)
    if workers == 1:
        work(directory, progress=progress)
    elif queue.num_done() < queue.num_batches:
        _in_processes(queue, directory, min(workers, queue.num_batches), progress)
    require_done(queue, directory)


def require_done(queue: Queue, directory: Path) -> None:
    """Raises RunFault, or what a worker wrote into error.json, where batches are not done."""
    left = queue.num_batches - queue.num_done()
    if not left:
        return
    if (directory / "error.json").is_file():
        told = json.loads((directory / "error.json").read_text(encoding="utf-8"))
        kind = InputError if told["exit_code"] == InputError.exit_code else RunFault
        raise kind(told["what"], where=told["where"], remedy=told["remedy"])
    raise RunFault(
        f"the evaluation ended with {left} of {queue.num_batches} batches left",
        where=_tail(directory),
        remedy="run the same command again: it goes on with what is left. Where memory ran out: --batch-size 1",
    )


def _in_processes(queue: Queue, directory: Path, workers: int, progress: Callable[[int, int], None] | None) -> None:
    """Start the processes and wait. One that is lost is told of; the others take up its batch."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // workers))
    processes: list[subprocess.Popen[bytes]] = []
    told: set[int] = set()
    try:
        for rank in range(workers):
            environment = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
            environment |= {"LOCAL_RANK": str(rank), "RANK": str(rank)}
            # -P: a folder named like a package in the working directory must not be imported in its place.
            command = [sys.executable, "-P", "-m", WORKER, str(directory.resolve()), "--parent", str(os.getpid())]
            with open(directory / f"worker-{rank:03d}.log", "ab") as log:
                processes.append(subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment}))
        while any(process.poll() is None for process in processes):
            if progress is not None:
                progress(queue.num_done(), queue.num_batches)
            for rank, process in enumerate(processes):
                if process.poll() not in (None, 0) and rank not in told:
                    told.add(rank)
                    print(f"evaluation: worker {rank} {_how(process.returncode)}", file=sys.stderr)
            if (directory / "error.json").is_file():
                break
            time.sleep(POLL_S)
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait()
    if progress is not None:
        progress(queue.num_done(), queue.num_batches)


def _how(code: int) -> str:
    if code < 0:
        return f"was ended by signal {-code} (9 is most often for want of memory); the others take up its batch"
    return f"ended with exit code {code}"


def _tail(directory: Path) -> str:
    """The directory, and the last line that a worker printed."""
    for path in sorted(directory.glob("worker-*.log")):
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if lines:
            return f"{path}: {lines[-1][:300]}"
    return str(directory)


def default_max_tokens() -> int:
    """Tokens of a batch, see `score_index`."""
    return 8192 if torch.cuda.is_available() else 2048
