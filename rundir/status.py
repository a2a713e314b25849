"""The current status of a run (status.json): one small file, replaced atomically."""

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tunesmith.rundir.atomic import temporary_name
from tunesmith.rundir.processes import is_alive

FINAL = ("done", "early_stopped", "preempted", "failed")
PHASES = ("queued", "preparing", "loading", "evaluating", "training", "exporting", *FINAL)
STALE_AFTER_S = 60.0


@dataclass
class Status:
    """phase: one of PHASES. step counts completed optimizer steps. pid and host are rank 0's (or the launcher's while
    preparing). heartbeat and started are seconds since the epoch. eta_s: estimated seconds to the end, if known."""

    phase: str
    step: int = 0
    total_steps: int = 0
    attempt: int = 0
    pid: int = 0
    host: str = ""
    started: float = 0.0
    heartbeat: float = 0.0
    eta_s: float | None = None
    exit_code: int | None = None

    def write(self, path: Path) -> None:
        """Set the heartbeat and replace the file. No fsync: the status is worthless after a power failure."""
        if self.phase not in PHASES:
            raise ValueError(f"unknown phase {self.phase!r}; the phases are {', '.join(PHASES)}")
        self.pid, self.host, self.heartbeat = os.getpid(), socket.gethostname(), time.time()
        temporary = temporary_name(path)
        temporary.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
        os.replace(temporary, path)


def read_status(path: Path) -> Status | None:
    """Read the last written status; None if there is none or it is damaged. Unknown fields are ignored."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return Status(**{f.name: raw[f.name] for f in fields(Status) if f.name in raw})
    except (OSError, ValueError, TypeError):
        return None


def is_running(status: Status) -> bool:
    """Whether the process of a status is running: decided by pid on its host, by the heartbeat's age elsewhere."""
    if status.phase in FINAL:
        return False
    if status.host != socket.gethostname():
        return time.time() - status.heartbeat < STALE_AFTER_S
    return is_alive(status.pid, status.heartbeat)
