"""The code that runs in Ray's actors and tasks: starts, monitors and stops the worker process of one rank."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.configs.plan import Plan, read_plan
from tunesmith.errors import ExitCode
from tunesmith.launcher.attempts import next_attempt
from tunesmith.launcher.backends.local import WORKER, worker_environment
from tunesmith.launcher.hardware import Hardware, detect_hardware
from tunesmith.rundir.lock import wait_until_free, worker_lock
from tunesmith.rundir.paths import RunDir

POLL_S = 0.2
SAVING_S = 120.0
"""Time limit for workers of an earlier attempt, whose actors have exited, to save and exit."""
_EXIT = re.compile(r"rank (\d+) on (\S+) exited with code (-?\d+)")


class WorkerExited(Exception):
    """A worker process exited without reporting an error. The message holds all fields, since Ray passes on texts."""

    def __init__(self, rank: int, host: str, code: int):
        super().__init__(f"rank {rank} on {host} exited with code {code}")
        self.rank, self.host, self.code = rank, host, code

    def __reduce__(self):
        return WorkerExited, (self.rank, self.host, self.code)


def run_rank(config: dict[str, Any]) -> int:
    """Run the worker of one rank in its actor; return its exit code. config: run_dir, and the number of the first
    attempt.

    Raises WorkerExited if the worker was killed: Ray then restarts all workers. A worker that reports an error ends the
    run.
    """
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero

    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    run = RunDir(Path(config["run_dir"]))
    plan = read_plan(run.plan)
    rendezvous = broadcast_from_rank_zero(_rendezvous(run, config["attempt"]) if rank == 0 else None)
    assert rendezvous is not None
    if run.stop_request.exists():
        return int(ExitCode.PREEMPTED)
    environment = {
        **os.environ,
        **worker_environment(plan, rank, world_size, local_rank=_local_rank(plan, context.get_local_rank())),
        "MASTER_ADDR": rendezvous["address"],
        "MASTER_PORT": str(rendezvous["port"]),
    }
    with worker_lock(run) as lock_fd, _worker(run, rendezvous["attempt"], rank, environment, lock_fd) as process:
        code, stop_requested = _wait(process, run)
    if stop_requested and code == -signal.SIGTERM:  # it was still importing: nothing had started, nothing is lost
        return int(ExitCode.PREEMPTED)
    if code not in (ExitCode.DONE, ExitCode.FAULT, ExitCode.BAD_INPUT, ExitCode.PREEMPTED):
        raise WorkerExited(rank, socket.gethostname(), code)
    return code


def detect_node_hardware(measure: bool) -> Hardware:
    """Hardware of the node that runs this task, with all its GPUs. measure: see `detect_hardware`."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # set by Ray for a task without GPUs
    return detect_hardware(measure=measure)


def inspect_run_directory(path: str) -> tuple[str, str, dict[str, str]]:
    """Return this node's host name, the content of a file of the run directory (empty if it cannot be read), and its
    package versions."""
    from tunesmith.launcher.ray.versions import versions

    try:
        content = Path(path).read_text(encoding="ascii")
    except OSError:
        content = ""
    return socket.gethostname(), content, versions()


def worker_exit_of(error: BaseException) -> WorkerExited | None:
    """The WorkerExited in an error from Ray, if there is one."""
    match = _EXIT.search(str(error))
    return WorkerExited(int(match[1]), match[2], int(match[3])) if match else None


def _rendezvous(run: RunDir, first_attempt: int) -> dict[str, Any]:
    """Wait for the workers of an earlier attempt to exit; return address, port and number of the new attempt."""
    from ray.util import get_node_ip_address

    wait_until_free(run, SAVING_S)
    attempt = first_attempt if run.logged_attempt() < first_attempt else next_attempt(run)
    with socket.socket() as probe:
        probe.bind(("", 0))
        return {"address": get_node_ip_address(), "port": probe.getsockname()[1], "attempt": attempt}


def _local_rank(plan: Plan, local_rank: int) -> int:
    """Index of the GPU among those visible to this actor, which usually sees only one."""
    visible = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    return 0 if plan.compute.device == "cuda" and len(visible) == 1 else local_rank


@contextmanager
def _worker(run: RunDir, attempt: int, rank: int, environment: dict[str, str], lock_fd: int):
    """Start the worker process. If this actor is killed the pipe closes, and the process saves and exits."""
    run.logs.mkdir(exist_ok=True)
    with open(run.log(attempt, rank), "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", WORKER, str(run.root), "--attempt", str(attempt)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=run.root,
            start_new_session=True,
            pass_fds=(lock_fd,),
        )
    try:
        yield process
    finally:
        if process.stdin is not None:
            process.stdin.close()


def _wait(process: "subprocess.Popen[bytes]", run: RunDir) -> tuple[int, bool]:
    """Return the exit code, and whether a stop was requested."""
    stop_requested = False
    while (code := process.poll()) is None:
        if not stop_requested and run.stop_request.exists():
            stop_requested = True
            process.send_signal(signal.SIGTERM)
        time.sleep(POLL_S)
    return code, stop_requested
