"""Emulated cluster hosts on one machine: network namespaces on a bridge, each with a host name and a PID namespace.

Killing a host kills all its processes at once, like a power failure; unplugging it disconnects its network.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.waiting import wait_for

NETWORK = "10.77.0"


def why_not() -> str | None:
    """Return why hosts cannot be created on this machine, or None."""
    if os.geteuid() != 0:
        return "hosts in network namespaces need root"
    if missing := [name for name in ("ip", "nsenter", "unshare") if shutil.which(name) is None]:
        return f"the command {missing[0]} is missing"
    probe = subprocess.run(["ip", "netns", "add", "ts-probe"], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "delete", "ts-probe"], capture_output=True, check=False)
    return f"network namespaces cannot be created: {probe.stderr.strip()}" if probe.returncode else None


@dataclass
class Host:
    """number: from 0. directory: contains the file `hosts` with all names. keeper: the process that the host
    ends with."""

    number: int
    directory: Path
    keeper: subprocess.Popen = field(init=False)

    @property
    def name(self) -> str:
        return f"host{self.number}"

    @property
    def address(self) -> str:
        return f"{NETWORK}.{10 + self.number}"

    @property
    def namespace(self) -> str:
        return f"ts-{os.getpid()}-{self.number}"

    def start(self) -> None:
        """Start the host, also after it was killed."""
        self._ready.unlink(missing_ok=True)
        subprocess.run(["ip", "netns", "delete", self.namespace], capture_output=True, check=False)
        _ip("netns", "add", self.namespace)
        _ip("link", "add", self._outer, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        _ip("link", "set", self._outer, "master", _bridge(), "up")
        _ip("-n", self.namespace, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", self.namespace, "link", "set", device, "up")
        script = (
            f"hostname {self.name} && mount --bind {self.directory / 'hosts'} /etc/hosts "
            f"&& touch {self._ready} && exec sleep infinity"
        )
        command = ["nsenter", f"--net=/run/netns/{self.namespace}", "unshare", "--uts", "--mount", "--pid", "--fork"]
        self.keeper = subprocess.Popen([*command, "--kill-child", "--mount-proc", "sh", "-c", script])
        wait_for(self._ready.exists, explain=lambda: f"{self.name} did not start", processes=[self.keeper])

    def command(self, *arguments: str) -> list[str]:
        """Return the command line that runs a command in this host."""
        inside = Path(f"/proc/{self.keeper.pid}/task/{self.keeper.pid}/children").read_text().split()[0]
        return ["nsenter", "--target", inside, "--net", "--uts", "--mount", "--pid", *arguments]

    def kill(self) -> None:
        self.keeper.send_signal(signal.SIGKILL)
        self.keeper.wait()

    def unplug(self) -> None:
        _ip("link", "set", self._outer, "down")

    def plug_in(self) -> None:
        _ip("link", "set", self._outer, "up")

    @property
    def _outer(self) -> str:
        return f"tsv{os.getpid() % 100000}-{self.number}"

    @property
    def _ready(self) -> Path:
        return self.directory / f"{self.name}.ready"


@contextmanager
def hosts(number: int, directory: Path) -> Iterator[list[Host]]:
    """Create hosts on a private network and remove them at the end of the block."""
    created = [Host(index, directory) for index in range(number)]
    (directory / "hosts").write_text(
        "127.0.0.1 localhost\n" + "".join(f"{host.address} {host.name}\n" for host in created)
    )
    _ip("link", "add", _bridge(), "type", "bridge")
    try:
        _ip("addr", "add", f"{NETWORK}.1/24", "dev", _bridge())
        _ip("link", "set", _bridge(), "up")
        for host in created:
            host.start()
        yield created
    finally:
        for host in created:
            if hasattr(host, "keeper") and host.keeper.poll() is None:
                host.kill()
            subprocess.run(["ip", "netns", "delete", host.namespace], capture_output=True, check=False)
        subprocess.run(["ip", "link", "delete", _bridge()], capture_output=True, check=False)


def _bridge() -> str:
    return f"tsb{os.getpid() % 100000}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
