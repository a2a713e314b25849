"""What is stored about a tracker in the run directory (tracking/<kind>.json): its run, and what it has received."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from tunesmith.errors import RunFault
from tunesmith.rundir.atomic import write_json
from tunesmith.rundir.paths import RunDir

PATIENCE_S = 30.0
"""How long an operation of a tracker may take, unless it stores an artifact."""


@dataclass
class TrackerState:
    """run_id: ID of the run in the tracker; empty before its first start. url: its page; empty if it has none.

    position: bytes of events.jsonl that the process has sent. last_steps: last step that the tracker has stored, by
    metric, when it was last closed. artifacts: what was stored, by name, with the digest or time that identifies it.
    place: the options that say where the run is. closed: how the run was ended in the tracker; empty while it is open
    there. patience_s: how long the current operation may take.
    """

    run_id: str = ""
    url: str = ""
    position: int = 0
    last_steps: dict[str, int] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    place: dict[str, str | None] = field(default_factory=dict)
    closed: str = ""
    patience_s: float = PATIENCE_S

    def write(self, path: Path) -> None:
        """Replace the file atomically."""
        write_json(path, asdict(self))


def state_file(run: RunDir, kind: str) -> Path:
    return run.tracking / f"{kind}.json"


def read_state(path: Path) -> TrackerState:
    """Read the state; a fresh one if the file is missing or damaged. Unknown fields are ignored."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return TrackerState(**{f.name: raw[f.name] for f in fields(TrackerState) if f.name in raw})
    except (OSError, ValueError, TypeError):
        return TrackerState()


@contextmanager
def only_sender(run: RunDir, kind: str) -> Iterator[None]:
    """Hold the right to send this run to a tracker. Raises RunFault if another process has it."""
    path = run.tracking / f"{kind}.lock"
    path.parent.mkdir(exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 64, 0).decode("ascii", "replace").strip()
            raise RunFault(
                f"another process already sends this run to {kind} (pid {holder})",
                where=str(path),
                remedy="wait until it has ended, or end it",
            ) from None
        except OSError:  # a file system without locks
            pass
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode("ascii"), 0)
        yield
    finally:
        os.close(fd)
