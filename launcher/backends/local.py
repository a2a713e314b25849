"""The back end of one machine: starts a run's workers here, passes signals on, waits for them.

The workers are started as torchrun would start them and find the same environment; torchrun's own agent is left out,
since it would cost every run the import of torch, and can neither keep the lock nor name the cause of a death.

Each worker has a session of its own, so Ctrl-C in the terminal reaches the launcher alone, which asks all of them to
save. Each holds a pipe from the launcher: when the launcher is gone, the pipe ends and the worker saves by itself. Each
inherits the run's lock, so that nobody starts the run again while one is still saving.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tunesmith.configs.plan import Plan
from tunesmith.data.index.workers import prepare_shards
from tunesmith.errors import RunFault
from tunesmith.launcher import cgroup
from tunesmith.launcher.exit_status import Ending, how_it_ended
from tunesmith.launcher.hardware import Hardware, detect_hardware
from tunesmith.launcher.signals import on_signals
from tunesmith.rundir.paths import RunDir
from tunesmith.threads import thread_environment

WORKER = "tunesmith.training.worker"
POLL_S = 0.1
OTHERS_GRACE_S = 30.0
"""How long the other workers may take to end after one has failed."""


class Local:
    """One machine, no cluster: the default."""

    several_nodes = False
    restarts = False

    def hardware(self) -> Hardware:
        return detect_hardware()

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
        on_asked: Callable[[], None],
    ) -> Ending:
        return run_local(run, plan, attempt, lock_fd, watch, on_asked)

    def close(self) -> None:
        pass


@dataclass
class Workers:
    """The processes by rank; asked: whether they were asked to save and end. first_dead: rank and exit code of those
    that had failed before any was told to end: among them is the cause."""

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    asked: bool = False
    first_dead: list[tuple[int, int]] = field(default_factory=list)

    def ask_to_end(self) -> None:
        """SIGTERM to every worker that lives, once: it saves and exits 75."""
        if self.asked:
            return
        self.asked = True
        self.signal_all(signal.SIGTERM)

    def signal_all(self, number: signal.Signals) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def let_go(self) -> None:
        """End the pipes: a worker that still lives saves and ends. Waits until all have."""
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
    on_asked: Callable[[], None] = lambda: None,
) -> Ending:
    """Run the plan's workers to their end. watch: called about ten times a second; on_asked: at the first signal.

    Must be called in the main thread, since it listens to signals. Raises RunFault where no process can be started.
    """
    kills_before = cgroup.oom_kills()
    workers = Workers()

    def ask() -> None:
        """The first time; later ones change nothing."""
        if not workers.asked:
            workers.ask_to_end()
            on_asked()

    def look() -> None:
        watch()
        if run.stop_request.exists():
            ask()

    with on_signals(ask):
        try:
            _start(run, plan, attempt, lock_fd, workers)
            codes = _wait(workers, look)
        finally:
            workers.let_go()
    kills = cgroup.oom_kills() - kills_before
    return how_it_ended(run, attempt, codes, first_dead=workers.first_dead, asked=workers.asked, oom_kills=kills)


def _start(run: RunDir, plan: Plan, attempt: int, lock_fd: int, workers: Workers) -> None:
    world_size = plan.compute.world_size
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} if world_size > 1 else {}
    run.logs.mkdir(parents=True, exist_ok=True)
    for rank in range(world_size):
        # -P: a folder named like a package in the working directory must not be imported in its place.
        command = [sys.executable, "-P", "-m", WORKER, str(run.root.resolve()), "--attempt", str(attempt)]
        try:
            with open(run.log(attempt, rank), "ab") as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **worker_environment(plan, rank, world_size, rank), **rendezvous},
                    start_new_session=True,
                    pass_fds=(lock_fd,),
                )
        except OSError as error:
            where, remedy = str(error.filename or sys.executable), "see that this can be written, and run, then go on"
            raise RunFault(f"a worker cannot be started: {error.strerror}", where=where, remedy=remedy) from error
        workers.processes.append(process)
    if workers.asked:  # the signal came before there was anybody to tell
        workers.signal_all(signal.SIGTERM)


def worker_environment(plan: Plan, rank: int, world_size: int, local_rank: int) -> dict[str, str]:
    """What a worker finds in its environment, beside the launcher's own and where to meet the others."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(world_size),
        **process_environment(plan),
        "TUNESMITH_PARENT_PIPE": "1",
    }


def process_environment(plan: Plan) -> dict[str, str]:
    """The part of it that is the same for all, whoever starts them."""
    return {
        **thread_environment(plan.compute.threads_per_rank),
        "PYTHONUNBUFFERED": "1",
    }


def _wait(workers: Workers, watch: Callable[[], None]) -> list[int]:
    """The exit codes by rank. When one worker fails the others cannot go on: they are asked, then made to end."""
    failed_at: float | None = None
    while None in workers.exit_codes:
        watch()
        dead = [(rank, code) for rank, code in enumerate(workers.exit_codes) if code not in (None, 0, 75)]
        if failed_at is None and dead:
            failed_at, workers.first_dead = time.monotonic(), [(rank, int(code or 0)) for rank, code in dead]
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
