"""Interfaces, the name of this host, and ports."""

import ipaddress
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from tunesmith.launcher.doctor.finding import Finding, Result

INTERFACES = Path("/sys/class/net")
SELECTED_BY = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


def check_interfaces(
    environment: Mapping[str, str] = os.environ, directory: Path = INTERFACES, host: str | None = None
) -> Result:
    """Interfaces that are up; those selected for NCCL and gloo exist; the host name has an address for other hosts."""
    states = {path.name: _read(path / "operstate") for path in sorted(directory.glob("*"))}
    up = [name for name, state in states.items() if state != "down" and name != "lo"]
    findings = []
    for variable in SELECTED_BY:
        prefixes = environment.get(variable, "").removeprefix("=")
        if not prefixes or prefixes.startswith("^"):
            continue
        for name in prefixes.split(","):
            # NCCL takes a prefix, gloo a name.
            if not any(known.startswith(name) for known in (*up, "lo")):
                what = f"{variable} selects {name}, but there is no such interface that is up"
                remedy = f"use one of {', '.join(up) or 'lo'}, or unset {variable}"
                findings.append(Finding("interfaces", "error", what, "processes of a run cannot connect", remedy))
    host = host or socket.gethostname()
    addresses = _addresses(host)
    if not addresses or all(ipaddress.ip_address(address).is_loopback for address in addresses):
        what = f"the host name {host} " + (f"is {addresses[0]}" if addresses else "has no address")
        why = "other hosts cannot connect to this one by its name; runs on one host are not affected"
        remedy = "enter its network address in /etc/hosts or DNS"
        findings.append(Finding("interfaces", "warning" if addresses else "error", what, why, remedy))
    return Result(
        "interfaces", f"up: {', '.join(up) or 'none but lo'}; {host} is {', '.join(addresses)}", tuple(findings)
    )


def check_ports(ports: Sequence[int]) -> Result:
    """Whether the given TCP ports are free on every address of this host."""
    held = {port: reason for port in ports if (reason := _bind_failure(port))}
    findings = [
        Finding(
            *("ports", "error", f"port {port} cannot be used: {reason}", "the program that needs it cannot start"),
            f"see which process holds it with `ss -ltnp sport = :{port}`, or use another port",
        )
        for port, reason in held.items()
    ]
    seen = f"free: {', '.join(str(port) for port in ports if port not in held) or 'none'}"
    return Result("ports", seen if ports else "no ports given (--port)", tuple(findings))


def _bind_failure(port: int) -> str:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # like servers: a closed connection holds no port
        try:
            server.bind(("", port))
            server.listen(1)
        except OSError as error:
            return error.strerror or str(error)
    return ""


def _addresses(host: str) -> list[str]:
    try:
        entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return sorted({str(entry[4][0]).partition("%")[0] for entry in entries})


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return "down"
