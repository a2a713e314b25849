"""Where the ranks of an attempt meet before any collective: a small store that rank 0 opens, in bounded time.

The address is MASTER_ADDR and MASTER_PORT. torch's own rendezvous waits for as long as collectives may take and names
nobody; here every wait has one deadline, and who is waited for is known at any moment.
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

START_TIMEOUT_S = 40.0
"""Between the first rank and the last; TUNESMITH_START_TIMEOUT_S=<seconds> where a cluster is slower to start."""
_POLL_S = 0.05
_SLACK_S = 5.0


def start_timeout_s() -> float:
    return float(os.environ.get("TUNESMITH_START_TIMEOUT_S") or START_TIMEOUT_S)


class Rendezvous:
    """The ranks leave word for each other under keys; values are JSON. Raises RunFault where the time is up.

    give_up: called with the error when a call into the network hangs beyond all timeouts; it must end the process.
    """

    def __init__(self, ranks: Ranks, attempt: int, give_up: Callable[[RunFault], None]):
        self.ranks, self._give_up = ranks, give_up
        self.address, self.port = os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", "0"))
        self.timeout_s = start_timeout_s()
        self._deadline = time.monotonic() + self.timeout_s
        self._waiting_for = f"rank 0 at {self.address}:{self.port}"
        self._guard = threading.Timer(self.timeout_s + _SLACK_S, self._abort)
        self._guard.daemon = True
        self._guard.start()
        opens = ranks.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        if not opens:
            self._await_port()
        self._tcp = self._open(opens)
        self.store = dist.PrefixStore(f"attempt-{attempt}", self._tcp)  # pyright: ignore[reportPrivateImportUsage]

    def set(self, key: str, value: Any) -> None:
        self._guarded(lambda: self.store.set(key, json.dumps(value)))

    def get(self, key: str, waiting_for: str) -> Any:
        """The value of a key, as soon as it is there. waiting_for: of what the error tells where it never comes."""
        self._waiting_for = waiting_for
        while not self._guarded(lambda: self.store.check([key])):
            if time.monotonic() > self._deadline:
                raise self._timeout_fault()
            time.sleep(_POLL_S)
        return json.loads(self._guarded(lambda: self.store.get(key)))

    def has(self, key: str) -> bool:
        return bool(self._guarded(lambda: self.store.check([key])))

    def set_waiting_for(self, waiting_for: str) -> None:
        """What the guard names from now on, in a call that cannot be polled."""
        self._waiting_for = waiting_for

    @property
    def timed_out(self) -> bool:
        return time.monotonic() > self._deadline

    def complete(self) -> None:
        """Everybody is here: nothing is cut short from now on."""
        self._guard.cancel()

    def _await_port(self) -> None:
        """Until somebody listens at the address. A plain connection: torch's own tries fill the log with C++ frames."""
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
                remedy="end the process that holds the port, or start again with another MASTER_PORT",
            ) from error

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except RuntimeError as error:  # the other end of the connection is gone
            raise RunFault(
                f"{this_rank(self.ranks.rank)} lost the connection to rank 0 before the first step",
                where=f"{self.address}:{self.port}: {str(error).splitlines()[0]}",
                remedy="the log of rank 0 tells why it ended",
            ) from error

    def _timeout_fault(self, why: str = "") -> RunFault:
        return RunFault(
            f"{this_rank(self.ranks.rank)} waited {self.timeout_s:.0f} s in vain for {self._waiting_for}",
            where=f"MASTER_ADDR={self.address}, MASTER_PORT={self.port}" + (f": {why}" if why else ""),
            remedy="see in the logs whether it started; that no firewall or other process takes the port; and that "
            "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name a network that the hosts share",
        )

    def _abort(self) -> None:
        self._give_up(self._timeout_fault("a call into the network did not return"))


def _reason(error: Exception) -> str:
    text = str(error)
    return "another process uses it" if "EADDRINUSE" in text else text.splitlines()[0]
