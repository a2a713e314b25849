"""Rendezvous of the ranks of an attempt before the first collective: a key-value store on rank 0, with a deadline.

The address is MASTER_ADDR and MASTER_PORT. torch's own rendezvous waits as long as a collective may take and does not
name the missing rank; here all waits share one deadline, and errors name the rank that is waited for.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from tunesmith.errors import RunFault
from tunesmith.training.distributed.fatal import this_rank
from tunesmith.training.distributed.ranks import Ranks

START_TIMEOUT_S = 120.0
"""Maximum time between the start of the first and the last rank; TUNESMITH_START_TIMEOUT_S overrides it. Importing
torch from a slow or busy disk takes more than a minute. A rank that exits is reported by its launcher at once."""
NCCL_START_S = 180.0
"""The least time for the first collectives on GPUs: CUDA contexts, and NCCL's search for links and networks."""
_POLL_S = 0.05
_SLACK_S = 5.0


def start_timeout_s() -> float:
    """Return the start timeout in seconds, from the environment or the default."""
    return float(os.environ.get("TUNESMITH_START_TIMEOUT_S") or START_TIMEOUT_S)


class Rendezvous:
    """Key-value store of the ranks; values are JSON. Raises RunFault on timeout.

    give_up: called with the error if a network call hangs beyond all timeouts; it must end the process.
    """

    def __init__(self, ranks: Ranks, attempt: int, give_up: Callable[[RunFault], None]):
        self.ranks, self._give_up = ranks, give_up
        self.address, self.port = os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", "0"))
        self.timeout_s = start_timeout_s()
        self._deadline = time.monotonic() + self.timeout_s
        self._waiting_for = f"rank 0 at {self.address}:{self.port}"
        self._guard = self._start_guard()
        opens = ranks.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        if not opens:
            self._await_port()
        self._tcp = self._open(opens)
        self.store = dist.PrefixStore(f"attempt-{attempt}", self._tcp)  # pyright: ignore[reportPrivateImportUsage]

    def set(self, key: str, value: Any) -> None:
        """Store a JSON value under a key."""
        self._guarded(lambda: self.store.set(key, json.dumps(value)))

    def get(self, key: str, waiting_for: str) -> Any:
        """Wait for a key and return its value. waiting_for: named in the error on timeout."""
        self._waiting_for = waiting_for
        while not self._guarded(lambda: self.store.check([key])):
            if time.monotonic() > self._deadline:
                raise self._timeout_fault()
            time.sleep(_POLL_S)
        return json.loads(self._guarded(lambda: self.store.get(key)))

    def has(self, key: str) -> bool:
        """Whether a key is set."""
        return bool(self._guarded(lambda: self.store.check([key])))

    def set_waiting_for(self, waiting_for: str) -> None:
        """Set what a timeout error names from now on, for calls that cannot be polled."""
        self._waiting_for = waiting_for

    @property
    def timed_out(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() > self._deadline

    def allow(self, seconds: float) -> None:
        """Allow at least this much time from now on, for what takes longer than connecting."""
        self._guard.cancel()
        self.timeout_s = max(self.timeout_s, seconds)
        self._deadline = time.monotonic() + self.timeout_s
        self._guard = self._start_guard()

    def _start_guard(self) -> threading.Timer:
        guard = threading.Timer(self.timeout_s + _SLACK_S, self._abort)
        guard.daemon = True
        guard.start()
        return guard

    def complete(self) -> None:
        """Cancel the deadline: all ranks have joined."""
        self._guard.cancel()

    def _await_port(self) -> None:
        """Wait until the port accepts connections. A plain socket: torch's own retries fill the log with C++ frames."""
        why = ""
        while time.monotonic() < self._deadline:
            try:
                socket.create_connection((self.address, self.port), timeout=2.0).close()
                return
            except OSError as error:
                why = error.strerror or str(error)
                time.sleep(0.2)
        raise self._timeout_fault(why)

    def _open(self, opens: bool) -> Any:
        try:
            return dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
                self.address,
                self.port,
                self.ranks.world_size,
                is_master=opens,
                timeout=timedelta(seconds=self.timeout_s),
                wait_for_workers=False,
            )
        except RuntimeError as error:
            if not opens:
                raise self._timeout_fault(str(error).splitlines()[0]) from error
            raise RunFault(
                f"{this_rank(0)} cannot open port {self.port}: {_reason(error)}",
                where=f"MASTER_ADDR={self.address}, MASTER_PORT={self.port}",
                remedy="end the process that uses the port, or start again with another MASTER_PORT",
            ) from error

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except RuntimeError as error:  # the other end of the connection is gone
            raise RunFault(
                f"{this_rank(self.ranks.rank)} lost the connection to rank 0 before the first step",
                where=f"{self.address}:{self.port}: {str(error).splitlines()[0]}",
                remedy="see the log of rank 0 for the reason",
            ) from error

    def _timeout_fault(self, why: str = "") -> RunFault:
        return RunFault(
            f"{this_rank(self.ranks.rank)} timed out after {self.timeout_s:.0f} s waiting for {self._waiting_for}",
            where=f"MASTER_ADDR={self.address}, MASTER_PORT={self.port}" + (f": {why}" if why else ""),
            remedy="check in the logs that it started, that no firewall or other process blocks the port, and that "
            "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name a network that the hosts share",
        )

    def _abort(self) -> None:
        self._give_up(self._timeout_fault("a network call did not return"))


def _reason(error: Exception) -> str:
    text = str(error)
    return "another process uses it" if "EADDRINUSE" in text else text.splitlines()[0]
