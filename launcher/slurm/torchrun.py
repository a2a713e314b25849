"""The back end inside a Slurm allocation, for sites that allow no Ray: one srun a node, each with a torchrun.

Runs in the batch step, on the first node; slurm/job.sh gives the address and the port. One srun for each node, and not
one for all, so that the end of every node is known by its own exit code, and the others can be ended.
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
from tunesmith.launcher.exit_status import Ending, how_it_ended
from tunesmith.launcher.hardware import Hardware, detect_hardware
from tunesmith.launcher.signals import on_signals
from tunesmith.rundir.paths import RunDir

POLL_S = 0.2
ASK_AGAIN_S = 3.0
"""A worker that is still importing ignores the signal: it is asked again until it ends."""
OTHERS_GRACE_S = 30.0
"""How long the other nodes may take to end after one has failed."""
_FAILURE = re.compile(r"^\s*rank\s*:\s*(\d+).*?^\s*exitcode\s*:\s*(-?\d+)", re.MULTILINE | re.DOTALL)


class Torchrun:
    """The nodes of this allocation."""

    several_nodes = True
    restarts = False

    def __init__(self) -> None:
        needed = "SLURM_JOB_NODELIST", "TUNESMITH_ADDRESS", "TUNESMITH_PORT", "TUNESMITH_SCRIPTS"
        if missing := [name for name in needed if not os.environ.get(name)]:
            raise InputError(
                f"this is no batch step of a Tunesmith job: {', '.join(missing)} not set",
                remedy="submit with: tunesmith train RECIPE --on slurm --launcher torchrun",
            )
        self.address = f"{os.environ['TUNESMITH_ADDRESS']}:{os.environ['TUNESMITH_PORT']}"
        self.nodes = node_names(os.environ["SLURM_JOB_NODELIST"])

    def hardware(self) -> Hardware:
        """Of the first node; the others are taken for its like."""
        return detect_hardware()

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
        on_asked: Callable[[], None] = lambda: None,
    ) -> Ending:
        """Run the plan's workers on the first nodes of the allocation, to their end. Call it in the main thread."""
        if plan.compute.world_size % plan.compute.nodes:
            raise InputError(
                f"{plan.compute.world_size} processes do not stand evenly on {plan.compute.nodes} nodes",
                where="key resources.workers",
                remedy="make it a multiple of resources.nodes, or submit with --launcher ray",
            )
        nodes = self.nodes[: plan.compute.nodes]
        if len(nodes) < plan.compute.nodes:
            raise InputError(
                f"the run needs {plan.compute.nodes} nodes, and the job has {len(nodes)}",
                where=os.environ["SLURM_JOB_NODELIST"],
                remedy="submit it with as many: --nodes",
            )
        steps = _Steps()
        with on_signals(steps.want_end):
            try:
                for number, node in enumerate(nodes):
                    steps.processes.append(_start(run, plan, attempt, number, node))
                _wait(steps, run, watch, on_asked)
            finally:
                steps.end()
        codes = [code for number in range(len(nodes)) for code in _codes(run, plan, attempt, number, steps)]
        first = [(rank, code) for rank, code in enumerate(codes) if code < 0 and code != -signal.SIGTERM]
        return how_it_ended(run, attempt, codes, first_dead=first or None, asked=steps.asked, oom_kills=0)

    def close(self) -> None:
        pass


@dataclass
class _Steps:
    """The srun of each node. asked: whether the workers were asked to save and end."""

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    asked: bool = False
    ended_by_us: set[int] = field(default_factory=set)

    def living(self) -> list[tuple[int, subprocess.Popen[bytes]]]:
        return [(number, step) for number, step in enumerate(self.processes) if step.poll() is None]

    def want_end(self) -> None:
        """Asked by a signal; `_wait` passes it on."""
        self.asked = True

    def ask(self) -> None:
        """srun passes the signal on to every process of its step."""
        for _, step in self.living():
            step.send_signal(signal.SIGUSR2)

    def end(self) -> None:
        """End what still lives; srun takes its step along."""
        for number, step in self.living():
            self.ended_by_us.add(number)
            step.terminate()
        for step in self.processes:
            step.wait()


def node_names(node_list: str) -> list[str]:
    """`node[1-2]` -> [node1, node2], by Slurm itself."""
    try:
        ended = subprocess.run(
            ["scontrol", "show", "hostnames", node_list], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise RunFault(f"Slurm did not tell the nodes of this job: {error}", where=node_list) from error
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
    run.logs.mkdir(parents=True, exist_ok=True)
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


def _wait(steps: _Steps, run: RunDir, watch: Callable[[], None], on_asked: Callable[[], None]) -> None:
    failed_at, asked_at = None, 0.0
    while steps.living():
        watch()
        now = time.monotonic()
        if not steps.asked and run.stop_request.exists():
            steps.asked = True
        if steps.asked and now - asked_at > ASK_AGAIN_S:
            if not asked_at:
                on_asked()
            asked_at = now
            steps.ask()
        if failed_at is None and any(step.poll() for step in steps.processes):
            failed_at = now
        if failed_at is not None and now - failed_at > OTHERS_GRACE_S:
            steps.end()
        time.sleep(POLL_S)
    watch()


def _codes(run: RunDir, plan: Plan, attempt: int, number: int, steps: _Steps) -> list[int]:
    """Exit codes of a node's workers by local rank. torchrun itself ends with 1 for any fault and tells in its log."""
    per_node, code = _per_node(plan), steps.processes[number].returncode
    if code == 0:
        return [0] * per_node
    try:
        text = run.node_log(attempt, number).read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    told = {int(rank) % per_node: int(worker) for rank, worker in _FAILURE.findall(text)}
    # Who is not named was ended by torchrun for another's sake; who was ended from here, by us.
    silent = -signal.SIGTERM if told or number in steps.ended_by_us else 1
    return [told.get(local, silent) for local in range(per_node)]


def _per_node(plan: Plan) -> int:
    return plan.compute.world_size // plan.compute.nodes
