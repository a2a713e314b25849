"""The back end within a Slurm allocation for sites without Ray: one srun per node, each with a torchrun.

Runs in the batch step, on the first node; slurm/job.sh provides address and port. Each node has a separate srun, so
that the exit code of every node is known and the other nodes can be terminated.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tunesmith.configs.plan import Plan
from tunesmith.data.index.workers import prepare_shards
from tunesmith.errors import InputError, RunFault
from tunesmith.launcher.backends.local import process_environment
from tunesmith.launcher.exit_status import Ending, ending_of
from tunesmith.launcher.hardware import Hardware, detect_hardware
from tunesmith.launcher.signals import on_signals
from tunesmith.rundir.paths import RunDir

POLL_S = 0.2
REPEAT_STOP_S = 3.0
"""Interval of repeated stop signals: a worker that is still importing ignores them."""
OTHERS_GRACE_S = 30.0
"""Time for the other nodes to exit after one has failed, before they are terminated."""
_FAILURE = re.compile(r"^\s*rank\s*:\s*(\d+).*?^\s*exitcode\s*:\s*(-?\d+)", re.MULTILINE | re.DOTALL)


class Torchrun:
    """The nodes of this allocation."""

    several_nodes = True
    restarts = False

    def __init__(self) -> None:
        needed = "SLURM_JOB_NODELIST", "TUNESMITH_ADDRESS", "TUNESMITH_PORT", "TUNESMITH_SCRIPTS"
        if missing := [name for name in needed if not os.environ.get(name)]:
            raise InputError(
                f"not in the batch step of a Tunesmith job: {', '.join(missing)} not set",
                remedy="submit with: tunesmith train RECIPE --on slurm --launcher torchrun",
            )
        self.address = f"{os.environ['TUNESMITH_ADDRESS']}:{os.environ['TUNESMITH_PORT']}"
        self.nodes = node_names(os.environ["SLURM_JOB_NODELIST"])

    def hardware(self, *, measure: bool = False) -> Hardware:
        """Hardware of the first node; the others are assumed to be equal. measure: see `detect_hardware`."""
        return detect_hardware(measure=measure)

    def num_nodes(self) -> int:
        return len(self.nodes)

    prepare_shards = staticmethod(prepare_shards)

    def run(
        self,
        run: RunDir,
        plan: Plan,
        attempt: int,
        lock_fd: int,
        watch: Callable[[], None],
        on_stop: Callable[[], None] = lambda: None,
    ) -> Ending:
        """Run the workers of the plan on the first nodes of the allocation until they exit. Main thread only."""
        if plan.compute.world_size % plan.compute.nodes:
            raise InputError(
                f"{plan.compute.world_size} processes cannot be distributed evenly over {plan.compute.nodes} nodes",
                where="key resources.workers",
                remedy="make it a multiple of resources.nodes, or submit with --launcher ray",
            )
        nodes = self.nodes[: plan.compute.nodes]
        if len(nodes) < plan.compute.nodes:
            raise InputError(
                f"the run needs {plan.compute.nodes} nodes, but the job has {len(nodes)}",
                where=os.environ["SLURM_JOB_NODELIST"],
                remedy=f"submit it with --nodes {plan.compute.nodes}",
            )
        steps = _Steps()
        with on_signals(steps.request_stop):
            try:
                for number, node in enumerate(nodes):
                    steps.processes.append(_start(run, plan, attempt, number, node))
                _wait(steps, run, watch, on_stop)
            finally:
                steps.end()
        codes = [code for number in range(len(nodes)) for code in _codes(run, plan, attempt, number, steps)]
        first = [(rank, code) for rank, code in enumerate(codes) if code < 0 and code != -signal.SIGTERM]
        return ending_of(
            run, attempt, codes, first_failed=first or None, stop_requested=steps.stop_requested, oom_kills=0
        )

    def close(self) -> None:
        pass


@dataclass
class _Steps:
    """The srun of each node. stop_requested: whether a stop was requested."""

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    stop_requested: bool = False
    ended_here: set[int] = field(default_factory=set)

    def running(self) -> list[tuple[int, subprocess.Popen[bytes]]]:
        return [(number, step) for number, step in enumerate(self.processes) if step.poll() is None]

    def request_stop(self) -> None:
        """Called on a signal; `_wait` forwards it."""
        self.stop_requested = True

    def signal_stop(self) -> None:
        """srun forwards the signal to every process of its step."""
        for _, step in self.running():
            step.send_signal(signal.SIGUSR2)

    def end(self) -> None:
        """Terminate the sruns that are still running; each ends its step."""
        for number, step in self.running():
            self.ended_here.add(number)
            step.terminate()
        for step in self.processes:
            step.wait()


def node_names(node_list: str) -> list[str]:
    """`node[1-2]` -> [node1, node2], expanded by Slurm."""
    try:
        ended = subprocess.run(
            ["scontrol", "show", "hostnames", node_list], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise RunFault(f"cannot get the nodes of this job from Slurm: {error}", where=node_list) from error
    return ended.stdout.split()


def _start(run: RunDir, plan: Plan, attempt: int, number: int, node: str) -> subprocess.Popen[bytes]:
    command = ["srun", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={node}", "--input=none", "--unbuffered"]
    own = {
        "TUNESMITH_RUN_DIR": str(run.root.resolve()),
        "TUNESMITH_ATTEMPT": str(attempt),
        "TUNESMITH_NODES": str(plan.compute.nodes),
        "TUNESMITH_NODE_RANK": str(number),
        "TUNESMITH_PROCESSES": str(_per_node(plan)),
        **process_environment(plan),
    }
    run.logs.mkdir(exist_ok=True)
    try:
        with open(run.node_log(attempt, number), "ab") as log:
            return subprocess.Popen(
                [*command, "bash", f"{os.environ['TUNESMITH_SCRIPTS']}/torchrun_node.sh"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **own},
                start_new_session=True,
            )
    except OSError as error:
        raise RunFault(f"srun cannot be started: {error.strerror}", where=node) from error


def _wait(steps: _Steps, run: RunDir, watch: Callable[[], None], on_stop: Callable[[], None]) -> None:
    failed_at, signalled_at = None, 0.0
    while steps.running():
        watch()
        now = time.monotonic()
        if not steps.stop_requested and run.stop_request.exists():
            steps.stop_requested = True
        if steps.stop_requested and now - signalled_at > REPEAT_STOP_S:
            if not signalled_at:
                on_stop()
            signalled_at = now
            steps.signal_stop()
        if failed_at is None and any(step.poll() for step in steps.processes):
            failed_at = now
        if failed_at is not None and now - failed_at > OTHERS_GRACE_S:
            steps.end()
        time.sleep(POLL_S)
    watch()


def _codes(run: RunDir, plan: Plan, attempt: int, number: int, steps: _Steps) -> list[int]:
    """Exit codes of a node's workers by local rank. torchrun exits with 1 for any failure; the codes are in its log."""
    per_node, code = _per_node(plan), steps.processes[number].returncode
    if code == 0:
        return [0] * per_node
    try:
        text = run.node_log(attempt, number).read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    logged = {int(rank) % per_node: int(worker) for rank, worker in _FAILURE.findall(text)}
    # A worker that is not in the log was terminated, by torchrun because another one failed, or from here.
    default = -signal.SIGTERM if logged or number in steps.ended_here else 1
    return [logged.get(local, default) for local in range(per_node)]


def _per_node(plan: Plan) -> int:
    return plan.compute.world_size // plan.compute.nodes
