"""A Ray cluster on emulated hosts (hosts.py), with token authentication."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.integration.hosts import Host, hosts
from tests.waiting import LIMIT_S

RAY = Path(sys.executable).with_name("ray")
PORT, JOBS_PORT = 6379, 8265


@dataclass
class RayHosts:
    """A head and worker hosts, each with `num_cpus` cores for Ray."""

    hosts: list[Host]
    directory: Path
    num_cpus: int

    @property
    def address(self) -> str:
        return f"{self.hosts[0].address}:{PORT}"

    @property
    def jobs_address(self) -> str:
        return f"http://{self.hosts[0].address}:{JOBS_PORT}"

    @property
    def environment(self) -> dict[str, str]:
        token = self.directory / "token"
        if not token.exists():
            token.touch(0o600)
            token.write_text("0123456789abcdef" * 4)
        return {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def start_ray(self, host: Host) -> None:
        """Run `ray start --block` in the host; it ends with the host."""
        role = ["--address", self.address]
        if host.number == 0:
            role = ["--head", "--port", str(PORT), "--dashboard-host", host.address]
            role += ["--dashboard-port", str(JOBS_PORT), "--include-dashboard", "true"]
        # A short path, since the paths of Ray's sockets below it are limited to 107 bytes.
        temp_dir = Path(f"/tmp/{host.namespace}")
        arguments = [str(RAY), "start", "--block", *role, "--node-ip-address", host.address, "--num-cpus", "1"]
        arguments[arguments.index("1")] = str(self.num_cpus)
        if host.number == 0:
            arguments += ["--temp-dir", str(temp_dir)]
        log = open(self.directory / f"{host.name}.log", "ab")  # noqa: SIM115  # inherited by the process
        subprocess.Popen(host.command(*arguments), stdout=log, stderr=log, env=self.environment, cwd=self.directory)

    def wait_for_nodes(self, number: int, timeout_s: float = LIMIT_S) -> None:
        """Wait until the cluster has this number of nodes."""
        script = (
            "import ray,sys,time\n"
            f"ray.init('{self.address}', logging_level='ERROR', log_to_driver=False)\n"
            f"while sum(n['Alive'] for n in ray.nodes()) != {number}: time.sleep(0.3)\n"
        )
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            arguments = self.hosts[0].command(sys.executable, "-c", script)
            try:
                result = subprocess.run(
                    arguments, env=self.environment, capture_output=True, timeout=timeout_s, check=False
                )
            except subprocess.TimeoutExpired:
                break
            if result.returncode == 0:
                return
            time.sleep(1)
        raise AssertionError(
            f"the cluster did not reach {number} nodes: {(self.directory / 'host0.log').read_text()[-2000:]}"
        )


@contextmanager
def ray_hosts(number: int, directory: Path, num_cpus: int = 1) -> Iterator[RayHosts]:
    """Create a cluster with this number of hosts and wait for all nodes."""
    with hosts(number, directory) as created:
        cluster = RayHosts(created, directory, num_cpus)
        for host in created:
            cluster.start_ray(host)
        cluster.wait_for_nodes(number)
        yield cluster
