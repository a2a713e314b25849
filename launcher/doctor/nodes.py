"""Several hosts: they are reachable, share the directory, have the same versions and time, and can communicate."""

import json
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.launcher.doctor.finding import Finding, Result
from tunesmith.launcher.doctor.hosts import Hosts, start
from tunesmith.rundir.paths import nearest_directory

NODE_S = 60.0
COLLECTIVE_S = 120.0
"""Timeouts, with the start of Python and the import of torch from a network file system."""
CLOCK_SLACK_S = 5.0
"""As in the preflight check of a run (training/distributed/preflight.py)."""
SLOW_BYTES_PER_S = 1e9
"""Gradients of a 7B model in bf16 take 14 s per step at this bandwidth."""


@dataclass(frozen=True)
class Answer:
    """What one host answered. failure: why there is no answer. ahead_s: bounds of how far its clock is ahead."""

    host: str
    failure: str = ""
    shared: str = ""
    port: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    ahead_s: tuple[float, float] = (0.0, 0.0)


def check_nodes(
    hosts: Hosts, directory: Path, timeout_s: float = NODE_S, collective_s: float = COLLECTIVE_S
) -> Iterator[Result]:
    """Query all hosts at once, then run a collective between them if all of them answered."""
    nonce = secrets.token_hex(16)
    place = nearest_directory(directory)
    path = place / f".tunesmith-doctor-{nonce}"
    written = ""
    try:
        path.write_text(nonce, encoding="ascii")
    except OSError as error:
        written = error.strerror or str(error)
    try:
        with ThreadPoolExecutor(len(hosts.names)) as pool:
            answers = list(pool.map(lambda host: ask(hosts, host, path, timeout_s), hosts.names))
    finally:
        with suppress(OSError):  # it was not written, or the file system has become read-only
            path.unlink()
    reached = [answer for answer in answers if not answer.failure]
    yield _reachable(answers)
    yield _shared(reached, place, nonce, written)
    yield _versions(reached)
    yield _clocks(reached)
    if len(reached) == len(answers):
        yield check_collective(hosts, reached[0].port, collective_s)


def ask(hosts: Hosts, host: str, path: Path, timeout_s: float) -> Answer:
    """The facts of one host, and its clock read between a request and the receipt of the answer."""
    command, line = hosts.command(host, "tunesmith.launcher.doctor.agent", str(path)), ""
    try:
        with start(command, timeout_s) as running:
            line = running.stdout.readline()
            if not line:
                return Answer(host, running.failure(timeout_s))
            facts = json.loads(line)
            requested = time.time()
            running.stdin.write("clock\n")
            running.stdin.flush()
            clock = running.stdout.readline()
            received = time.time()
            if not clock:
                return Answer(host, running.failure(timeout_s))
            ahead = (float(clock) - received, float(clock) - requested)
            return Answer(host, "", facts["shared"], facts["port"], facts["versions"], ahead)
    except OSError as error:
        return Answer(host, f"{command[0]}: {error.strerror}")
    except (ValueError, KeyError):  # such as a banner of the login shell
        return Answer(host, f"unexpected output: {line.strip()[:80]}")


def _reachable(answers: list[Answer]) -> Result:
    remedy = "`ssh HOST true` must work without a password, with Tunesmith installed under the same path"
    findings = [
        Finding(
            "hosts", "error", f"{each.host} does not answer: {each.failure}", "it cannot take part in a run", remedy
        )
        for each in answers
        if each.failure
    ]
    seen = f"{len(answers) - len(findings)} of {len(answers)} hosts answered"
    return Result("hosts", seen, tuple(findings))


def _shared(answers: list[Answer], place: Path, nonce: str, failure: str) -> Result:
    why = "all hosts of a run read its plan and write checkpoints there"
    remedy = "put the run directory on a file system that every host mounts under the same path (--path, --run-dir)"
    if failure:
        finding = Finding("shared-directory", "error", f"{place} cannot be written: {failure}", why, remedy)
        return Result("shared-directory", str(place), (finding,))
    findings = [
        Finding("shared-directory", "error", f"{each.host} does not see the files in {place}", why, remedy)
        for each in answers
        if each.shared != nonce
    ]
    seen = f"{place} is seen by {len(answers) - len(findings)} of {len(answers)} hosts"
    return Result("shared-directory", seen, tuple(findings))


def _versions(answers: list[Answer]) -> Result:
    findings = []
    for other in answers[1:]:
        for name, version in answers[0].versions.items():
            if other.versions.get(name) != version:
                what = f"{name} {other.versions.get(name)} on {other.host}, but {version} on {answers[0].host}"
                why, remedy = "runs refuse to start with different versions", f"install {name} {version} on every host"
                findings.append(Finding("host-versions", "error", what, why, remedy))
    return Result("host-versions", f"{len(answers)} hosts compared", tuple(findings))


def _clocks(answers: list[Answer]) -> Result:
    findings = []
    for each in answers:
        low, high = each.ahead_s
        if low > CLOCK_SLACK_S or high < -CLOCK_SLACK_S:
            seconds = (low + high) / 2
            direction = "ahead of" if seconds > 0 else "behind"
            what = f"the clock of {each.host} is {abs(seconds):.0f} s {direction} this host's"
            why = f"runs refuse to start with clocks that differ by more than {CLOCK_SLACK_S:.0f} s"
            findings.append(Finding("host-clocks", "error", what, why, "synchronize the clocks (NTP)"))
    return Result("host-clocks", f"{len(answers)} clocks compared", tuple(findings))


def check_collective(
    hosts: Hosts, port: int, timeout_s: float = COLLECTIVE_S, slow_bytes_per_s: float = SLOW_BYTES_PER_S
) -> Result:
    """Run an all-reduce with one rank per host; the first host is rank 0. port: free on the first host."""
    size = len(hosts.names)

    def run(rank: int) -> tuple[str, str]:
        rest = (str(rank), str(size), hosts.names[0], str(port), f"{0.8 * timeout_s:g}")
        command = hosts.command(hosts.names[rank], "tunesmith.training.distributed.bandwidth", *rest)
        try:
            with start(command, timeout_s) as running:
                output = running.stdout.read()
                running.process.wait()
                return output, running.failure(timeout_s) if running.process.returncode else ""
        except OSError as error:
            return "", f"{command[0]}: {error.strerror}"

    with ThreadPoolExecutor(size) as pool:
        ended = list(pool.map(run, range(size)))
    failed = {host: failure for host, (_, failure) in zip(hosts.names, ended, strict=True) if failure}
    if failed:
        what = "; ".join(f"{host}: {failure}" for host, failure in failed.items())
        remedy = (
            "open the ports between the hosts; set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME to a network they share"
        )
        finding = Finding("collective", "error", f"an all-reduce failed ({what})", "runs need it in every step", remedy)
        return Result("collective", f"{size} ranks, one per host", (finding,))
    line = next(line for line in ended[0][0].splitlines() if line.startswith("{"))
    measured = json.loads(line)
    speed = float(measured["bytes_per_s"])
    seen = f"{measured['backend']}, {size} ranks, {speed / 1e9:.2f} GB/s (bus bandwidth of a 16 MiB all-reduce)"
    if speed >= slow_bytes_per_s:
        return Result("collective", seen)
    why = "the gradients of every step pass through this network"
    remedy = "use a faster interface (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME), or LoRA, which sends less"
    return Result("collective", seen, (Finding("collective", "warning", f"only {seen}", why, remedy),))
