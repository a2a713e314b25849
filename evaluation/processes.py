"""Run a job on this machine, in this process or in several worker processes.

Other launchers start `python -m tunesmith.evaluation.worker JOB_DIR` on any machine and then call `require_done`.
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
from tunesmith.threads import thread_environment

WORKER = "tunesmith.evaluation.worker"
POLL_S = 0.2


def run_job(
    job: EvaluationJob, directory: Path, *, workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> None:
    """Run the remaining batches of the job. progress: called with (batches done, total batches).

    Raises InputError and RunFault like loading and scoring, and RunFault if all workers exited before the job was done.
    """
    queue = job.open(directory)
    (directory / "error.json").unlink(missing_ok=True)
    if workers == 1:
        work(directory, progress=progress)
    elif queue.num_done() < queue.num_batches:
        _in_processes(queue, directory, min(workers, queue.num_batches), progress)
    require_done(queue, directory)


def require_done(queue: Queue, directory: Path) -> None:
    """Raise RunFault, or the error that a worker wrote to error.json, if batches are not done."""
    remaining = queue.num_batches - queue.num_done()
    if not remaining:
        return
    if (directory / "error.json").is_file():
        error = json.loads((directory / "error.json").read_text(encoding="utf-8"))
        kind = InputError if error["exit_code"] == InputError.exit_code else RunFault
        raise kind(error["what"], where=error["where"], remedy=error["remedy"])
    raise RunFault(
        f"the evaluation stopped with {remaining} of {queue.num_batches} batches remaining",
        where=_last_output(directory),
        remedy="run the same command again to continue; if memory ran out, add --batch-size 1",
    )


def _in_processes(queue: Queue, directory: Path, workers: int, progress: Callable[[int, int], None] | None) -> None:
    """Start the workers and wait. A worker that fails is reported; the others process its batch."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // workers))
    processes: list[subprocess.Popen[bytes]] = []
    reported: set[int] = set()
    try:
        for rank in range(workers):
            environment = {**thread_environment(threads), "LOCAL_RANK": str(rank), "RANK": str(rank)}
            # -P: do not import a directory of the working directory in place of a package with the same name.
            command = [sys.executable, "-P", "-m", WORKER, str(directory.resolve()), "--parent", str(os.getpid())]
            with open(directory / f"worker-{rank:03d}.log", "ab") as log:
                processes.append(subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment}))
        while any(process.poll() is None for process in processes):
            if progress is not None:
                progress(queue.num_done(), queue.num_batches)
            for rank, process in enumerate(processes):
                if process.poll() not in (None, 0) and rank not in reported:
                    reported.add(rank)
                    print(f"evaluation: worker {rank} {_exit_reason(process.returncode)}", file=sys.stderr)
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


def _exit_reason(code: int) -> str:
    if code < 0:
        return f"was killed by signal {-code} (9: usually out of memory); the other workers process its batch"
    return f"exited with code {code}"


def _last_output(directory: Path) -> str:
    """The log and the last line printed by a worker; the directory if no worker printed anything."""
    for path in sorted(directory.glob("worker-*.log")):
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if lines:
            return f"{path}: {lines[-1][:300]}"
    return str(directory)


def default_max_tokens() -> int:
    """Default number of tokens per batch, see `score_index`."""
    return 8192 if torch.cuda.is_available() else 2048
