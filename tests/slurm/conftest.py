"""A real Slurm cluster on this machine: munged, slurmctld and several slurmd, in a temporary directory on free ports.

Every daemon runs in the foreground of a process that is ended by its pid. Processes left by jobs are identified by the
SLURM_CONF in their environment, which is unique to this cluster.
"""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.selection import needs
from tests.waiting import LIMIT_S, wait_for

NODES = ("node1", "node2", "node3")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
PR_SET_PDEATHSIG = 1

SLURM_CONF = """
ClusterName=tunesmith-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=3600
SlurmdTimeout=9
BatchStartTimeout=20
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PropagateResourceLimits=NONE
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP
"""


@dataclass
class Cluster:
    """The daemons by name, and the environment in which Slurm's commands use this cluster. scratch: its local disk."""

    root: Path
    scratch: Path
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.root / "slurm.conf"), "PATH": PATH, "TMPDIR": str(self.scratch)}

    def call(self, *arguments: str | Path, check: bool = True) -> str:
        """Return standard output of a Slurm command."""
        ended = subprocess.run(
            [*map(str, arguments)], env=self.environment, capture_output=True, text=True, timeout=LIMIT_S
        )
        assert not check or ended.returncode == 0, f"{arguments}: {ended.stdout}{ended.stderr}"
        return ended.stdout.strip()

    def job(self, job: str | int) -> dict[str, str]:
        """The output of `scontrol show job`; the values contain no spaces here."""
        return self.jobs(job)[-1]

    def jobs(self, job: str | int) -> list[dict[str, str]]:
        """The same for every task of an array."""
        lines = self.call("scontrol", "show", "job", "--oneliner", str(job)).splitlines()
        return [dict(entry.partition("=")[::2] for entry in line.split() if "=" in entry) for line in lines]

    def state(self, job: str | int) -> str:
        return self.job(job).get("JobState", "")

    def wait(self, job: str | int, *states: str, timeout_s: float = LIMIT_S) -> dict[str, str]:
        """Wait until a job is in one of the states; without states, until it has ended."""
        last = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "DEADLINE", "OUT_OF_MEMORY")
        wait_for(lambda: self.state(job) in last, timeout_s, explain=lambda: str(self.job(job)))
        return self.job(job)

    def start_node(self, node: str) -> None:
        self._start(f"slurmd-{node}", "slurmd", "-D", "-N", node, "-f", str(self.root / "slurm.conf"))

    def kill_node(self, node: str) -> None:
        """Simulate a power failure: kill the daemon and its jobs. The controller detects it on its own."""
        self.daemons.pop(f"slurmd-{node}").kill()
        for pid in self._pids(f"SLURMD_NODENAME={node}"):
            os.kill(pid, signal.SIGKILL)

    def start_controller(self) -> None:
        self._start("slurmctld", "slurmctld", "-D", "-f", str(self.root / "slurm.conf"))

    def stop_controller(self) -> None:
        """Simulate maintenance: nothing can be submitted or queried until the controller is started again."""
        daemon = self.daemons.pop("slurmctld")
        daemon.terminate()
        daemon.wait(timeout=300)

    def processes(self) -> list[str]:
        """The command lines of processes that jobs have left running."""
        return [command_of(pid) for pid in self._pids("SLURM_JOB_ID=")]

    @contextmanager
    def closed_partition(self) -> Iterator[None]:
        """Within the block, no pending job starts."""
        self.call("scontrol", "update", "PartitionName=main", "State=DOWN")
        try:
            yield
        finally:
            self.start_missing()
            self.call("scontrol", "update", "PartitionName=main", "State=UP")

    def restore(self) -> None:
        """Cancel all jobs, start missing daemons, and bring nodes and partition back up: no test affects the next."""
        self.start_missing()
        if self._is_clean():
            return
        self.call("scancel", "--user=root", check=False)
        self.call("scontrol", "update", "PartitionName=main", "State=UP")
        wait_for(lambda: self._is_clean(resume_nodes=True), explain=lambda: self.call("sinfo", "-N", "-l") + self.log())

    def start_missing(self) -> None:
        """Start the controller and the nodes that a test has stopped."""
        if not self._is_running("slurmctld"):
            self.start_controller()
            wait_for(lambda: "UP" in self.call("scontrol", "ping", check=False), explain=self.log)
        for node in NODES:
            if not self._is_running(f"slurmd-{node}"):
                self.start_node(node)

    def _is_clean(self, resume_nodes: bool = False) -> bool:
        """Whether no job is left, every node is idle and the partition is up. resume_nodes: resume drained nodes."""
        states = self.call("sinfo", "-h", "-o", "%a %T %D", check=False)
        if resume_nodes and ("drain" in states or "down" in states):
            self.call("scontrol", "update", f"NodeName={','.join(NODES)}", "State=RESUME", check=False)
        return states == f"up idle {len(NODES)}" and not self.call("squeue", "-h", check=False)

    def _is_running(self, daemon: str) -> bool:
        return daemon in self.daemons and self.daemons[daemon].poll() is None

    def start(self) -> None:
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.root / name).mkdir()
        ports = free_ports(1 + len(NODES))
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} "
            "CPUs=8 RealMemory=4000 State=UNKNOWN"
            for node, port in zip(NODES, ports[1:], strict=True)
        )
        text = SLURM_CONF.format(host=socket.gethostname(), root=self.root, controller_port=ports[0], nodes=nodes)
        (self.root / "slurm.conf").write_text(text)
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        names = {"key-file": key, "socket": self.root / "munge.socket", "log-file": self.root / "munged.log"}
        names |= {"pid-file": self.root / "munged.pid", "seed-file": self.root / "munged.seed"}
        self._start(
            "munged", "munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in names.items())
        )
        wait_for(names["socket"].exists, explain=self.log)
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        wait_for(lambda: self.call("sinfo", "-h", "-o", "%T %D", check=False) == f"idle {len(NODES)}", explain=self.log)

    def stop(self) -> None:
        self.call("scancel", "--user=root", check=False)
        for daemon in reversed(list(self.daemons.values())):
            daemon.terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(timeout=300)
            except subprocess.TimeoutExpired:
                daemon.kill()
        for pid in self._pids(""):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def log(self) -> str:
        logs = {path.name: path.read_text(errors="replace")[-3000:] for path in sorted(self.root.glob("*.log"))}
        return "\n".join(f"{name}:\n{text}" for name, text in logs.items())

    def _start(self, name: str, *command: str) -> None:
        libc = ctypes.CDLL(None)
        with open(self.root / f"{name}.out", "ab") as output:
            self.daemons[name] = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # the cluster must end if the tests are killed
                preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
            )

    def _pids(self, mark: str) -> list[int]:
        """Processes of this cluster, except its daemons, with an environment entry that starts with `mark`."""
        conf, pids = f"SLURM_CONF={self.root}/slurm.conf".encode(), []
        daemons = {daemon.pid for daemon in self.daemons.values()} | {os.getpid()}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                entries = (path / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if conf in entries and any(entry.startswith(mark.encode()) for entry in entries):
                pids.append(int(path.name))
        return [pid for pid in pids if pid not in daemons]


RUNNING = pytest.StashKey[Cluster | None]()
"""The cluster of the session while it is running."""


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@pytest.fixture(scope="session")
@needs("cluster", group="slurm")
def cluster(tmp_path_factory, request) -> Iterator[Cluster]:
    """Three nodes with eight cores each, as seen by Slurm."""
    if os.geteuid() != 0:
        pytest.skip("a private Slurm cluster needs root: its daemons start jobs as their users")
    if missing := [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]:
        pytest.skip(f"Slurm is not installed ({', '.join(missing)}): tools/debian_packages.sh installs it on Debian")
    root = tmp_path_factory.mktemp("slurm")
    for folder in (root, *root.parents):  # munged rejects a socket below a directory that others cannot enter
        if folder.stat().st_uid == 0 and folder.is_relative_to(tmp_path_factory.getbasetemp().parent):
            folder.chmod(0o755)
    # A short path: Ray's sockets are below it, and socket paths are limited to 107 characters.
    cluster = Cluster(root, Path(tempfile.mkdtemp(prefix="ts")))
    try:
        cluster.start()
        request.session.stash[RUNNING] = cluster
        yield cluster
    finally:
        request.session.stash[RUNNING] = None
        cluster.stop()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Restore the cluster after each test, also when the setup of a fixture failed."""
    if (cluster := item.session.stash.get(RUNNING, None)) is not None:
        cluster.restore()
