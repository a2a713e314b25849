"""What runs inside Ray's actors and tasks: one rank's worker process is started, watched, asked to save, mourned."""

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
"""How long workers of an earlier attempt, whose actors are gone, may take to save and end."""
_DEATH = re.compile(r"rank (\d+) on (\S+) ended with exit code (-?\d+)")


class WorkerDied(Exception):
    """A worker process that died without telling why. Its text holds all, since Ray passes texts on."""

    def __init__(self, rank: int, host: str, code: int):
        super().__init__(f"rank {rank} on {host} ended with exit code {code}")
        self.rank, self.host, self.code = rank, host, code

    def __reduce__(self):
        return WorkerDied, (self.rank, self.host, self.code)


def run_rank(config: dict[str, Any]) -> int:
    """One rank, in its actor; the exit code of its worker. config: run_dir, and the number of the first attempt.

    Raises WorkerDied where the worker was killed: Ray then starts all of them again. A worker that tells of a fault of
    the run ends it.
    """
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero

    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    run = RunDir(Path(config["run_dir"]))
    plan = read_plan(run.plan)
    place = broadcast_from_rank_zero(_meeting_place(run, config["attempt"]) if rank == 0 else None)
    assert place is not None
    if run.stop_request.exists():
        return int(ExitCode.PREEMPTED)
    environment = {
        **os.environ,
        **worker_environment(plan, rank, world_size, local_rank=_local_rank(plan, context.get_local_rank())),
        "MASTER_ADDR": place["address"],
        "MASTER_PORT": str(place["port"]),
    }
    with worker_lock(run) as lock_fd, _worker(run, place["attempt"], rank, environment, lock_fd) as process:
        code, asked = _wait(process, run)
    if asked and code == -signal.SIGTERM:  # it was still importing: nothing had begun, nothing is lost
        return int(ExitCode.PREEMPTED)
    if code not in (ExitCode.DONE, ExitCode.FAULT, ExitCode.BAD_INPUT, ExitCode.PREEMPTED):
        raise WorkerDied(rank, socket.gethostname(), code)
    return code


def look_at_machine() -> Hardware:
    """Of the machine that this task runs on, with all its GPUs."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # set by Ray for a task that takes none
    return detect_hardware()


def look_at_run(path: str) -> tuple[str, str, dict[str, str]]:
    """This machine's name, what it reads in a file of the run directory (empty: it does not see it), its versions."""
    from tunesmith.launcher.ray.versions import versions

    try:
        content = Path(path).read_text(encoding="ascii")
    except OSError:
        content = ""
    return socket.gethostname(), content, versions()


def death_of(error: BaseException) -> WorkerDied | None:
    """The death that an error from Ray tells of."""
    match = _DEATH.search(str(error))
    return WorkerDied(int(match[1]), match[2], int(match[3])) if match else None


def _meeting_place(run: RunDir, first_attempt: int) -> dict[str, Any]:
    """Where the workers meet, and the number of their attempt; once those of an earlier attempt have ended."""
    from ray.util import get_node_ip_address

    wait_until_free(run, SAVING_S)
    attempt = first_attempt if run.logged_attempt() < first_attempt else next_attempt(run)
    with socket.socket() as probe:
        probe.bind(("", 0))
        return {"address": get_node_ip_address(), "port": probe.getsockname()[1], "attempt": attempt}


def _local_rank(plan: Plan, local_rank: int) -> int:
    """The number of the GPU among those that this actor sees: most often it sees only its own."""
    visible = [word for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word]
    return 0 if plan.compute.device == "cuda" and len(visible) == 1 else local_rank


@contextmanager
def _worker(run: RunDir, attempt: int, rank: int, environment: dict[str, str], lock_fd: int):
    """The process. When this actor is killed its pipe ends, and the process saves and ends by itself."""
    run.logs.mkdir(parents=True, exist_ok=True)
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
    """The exit code, and whether the process was asked to save and end."""
    asked = False
    while (code := process.poll()) is None:
        if not asked and run.stop_request.exists():
            asked = True
            process.send_signal(signal.SIGTERM)
        time.sleep(POLL_S)
    return code, asked
