"""The back end of one machine: starts a run's workers here, forwards stop requests and waits for them.

Workers get the same environment as under torchrun. torchrun's agent is not used, because it would add an import of
torch to every run, and can neither hold the lock nor report why a worker exited.

Each worker runs in a separate session, so Ctrl-C in the terminal reaches only the launcher, which tells all workers to
save. Each holds a pipe from the launcher: if the launcher exits, the pipe closes and the worker saves its state. Each
inherits the run's lock, so that the run cannot be started again while a worker is still saving.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.configs.plan import Plan
from tunesmith.data.index.workers import prepare_shards
from tunesmith.errors import RunFault
from tunesmith.launcher import cgroup
from tunesmith.launcher.exit_status import Ending, ending_of
from tunesmith.launcher.hardware import Hardware, detect_hardware
from tunesmith.launcher.signals import on_signals
from tunesmith.rundir.paths import RunDir
from tunesmith.threads import thread_environment

WORKER = "tunesmith.training.worker"
POLL_S = 0.1
OTHERS_GRACE_S = 30.0
"""Time for the other workers to exit after one has failed, before they are killed."""


class Local:
    """A single machine without a cluster: the default."""

    several_nodes = False
    restarts = False

    def hardware(self, *, measure: bool = False) -> Hardware:
        return detect_hardware(measure=measure)

    def num_nodes(self) -> int:
        return 1

    prepare_shards = staticmethod(prepare_shards)

    def run(
        self,
        run: RunDir,
        plan: Plan,
        attempt: int,
        lock_fd: int,
        watch: Callable[[], None],
        on_stop: Callable[[], None],
    ) -> Ending:
        return run_local(run, plan, attempt, lock_fd, watch, on_stop)

    def close(self) -> None:
        pass


@dataclass
class Workers:
    """The processes by rank. stop_requested: whether a stop was requested. first_failed: rank and exit code
    of those that failed before any other was terminated; the cause is among them."""

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    stop_requested: bool = False
    first_failed: list[tuple[int, int]] = field(default_factory=list)

    def request_stop(self) -> None:
        """Send SIGTERM once to every running worker, which saves and exits with 75."""
        if self.stop_requested:
            return
        self.stop_requested = True
        self.signal_all(signal.SIGTERM)

    def signal_all(self, number: signal.Signals) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def release(self) -> None:
        """Close the pipes, so that running workers save and exit, and wait for them."""
        for process in self.processes:
            if process.stdin is not None:
                process.stdin.close()
        for process in self.processes:
            process.wait()

    @property
    def exit_codes(self) -> list[int | None]:
        return [process.poll() for process in self.processes]


def run_local(
    run: RunDir,
    plan: Plan,
    attempt: int,
    lock_fd: int,
    watch: Callable[[], None],
    on_stop: Callable[[], None] = lambda: None,
) -> Ending:
    """Run the workers of the plan until they exit. watch: called about ten times per second; on_stop: at the first
    stop request.

    Must be called in the main thread, since it handles signals. Raises RunFault if a process cannot be started.
    """
    kills_before = cgroup.oom_kills()
    workers = Workers()

    def stop() -> None:
        """Only the first call has an effect."""
        if not workers.stop_requested:
            workers.request_stop()
            on_stop()

    def poll() -> None:
        watch()
        if run.stop_request.exists():
            stop()

    with on_signals(stop):
        try:
            _start(run, plan, attempt, lock_fd, workers)
            codes = _wait(workers, poll)
        finally:
            workers.release()
    kills = cgroup.oom_kills() - kills_before
    return ending_of(
        run, attempt, codes, first_failed=workers.first_failed, stop_requested=workers.stop_requested, oom_kills=kills
    )


def _start(run: RunDir, plan: Plan, attempt: int, lock_fd: int, workers: Workers) -> None:
    run.logs.mkdir(exist_ok=True)
    logs = [run.log(attempt, rank) for rank in range(plan.compute.world_size)]
    program = [WORKER, str(run.root.resolve()), "--attempt", str(attempt)]
    for process in started_ranks(plan, program, logs, (lock_fd,)):
        workers.processes.append(process)
    if workers.stop_requested:  # the signal arrived before the workers were started
        workers.signal_all(signal.SIGTERM)


def started_ranks(
    plan: Plan, program: Sequence[str], logs: Sequence[Path], pass_fds: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process per rank on this machine and yield each. program: module and arguments. logs: by rank, appended
    to. Raises RunFault if a process cannot be started."""
    world_size = plan.compute.world_size
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} if world_size > 1 else {}
    for rank, path in enumerate(logs):
        # -P: a directory with the name of a package in the working directory must not be imported instead.
        command = [sys.executable, "-P", "-m", *program]
        try:
            with open(path, "ab") as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **worker_environment(plan, rank, world_size, rank), **rendezvous},
                    start_new_session=True,
                    pass_fds=pass_fds,
                )
        except OSError as error:
            where, remedy = str(error.filename or sys.executable), "check its permissions, then resume the run"
            raise RunFault(f"a worker cannot be started: {error.strerror}", where=where, remedy=remedy) from error
        yield process


def worker_environment(plan: Plan, rank: int, world_size: int, local_rank: int) -> dict[str, str]:
    """Environment variables of a worker, in addition to the launcher's environment and the rendezvous."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(world_size),
        **process_environment(plan),
        "TUNESMITH_PARENT_PIPE": "1",
    }


def process_environment(plan: Plan) -> dict[str, str]:
    """Environment variables that are the same for all workers on any back end."""
    return {
        **thread_environment(plan.compute.threads_per_rank),
        "PYTHONUNBUFFERED": "1",
    }


def _wait(workers: Workers, watch: Callable[[], None]) -> list[int]:
    """Return the exit codes by rank. If a worker fails the others cannot continue: they are terminated, then killed."""
    failed_at: float | None = None
    while None in workers.exit_codes:
        watch()
        failed = [(rank, code) for rank, code in enumerate(workers.exit_codes) if code not in (None, 0, 75)]
        if failed_at is None and failed:
            failed_at, workers.first_failed = time.monotonic(), [(rank, int(code or 0)) for rank, code in failed]
            workers.signal_all(signal.SIGTERM)
        elif failed_at is not None and time.monotonic() - failed_at > OTHERS_GRACE_S:
            workers.signal_all(signal.SIGKILL)
        time.sleep(POLL_S)
    watch()
    return [process.wait() for process in workers.processes]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
