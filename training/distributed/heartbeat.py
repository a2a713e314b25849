"""Heartbeat files: the current activity of every rank, in the run directory."""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

Beat = dict[str, Any]
"""Keys: attempt, rank, host, pid, number (of this beat), stage, step, units (of progress), limit_s, collective (the one
that the rank is in, or empty), stack."""

_FILE_BYTES = 4096
_STACK_DEPTH = 16
_COLLECTIVES = "distributed_c10d.py:"
_QUEUE = ("work_queue.py:", " pull")
"""File and function in which a rank waits for batches of others. While it computes its own, the generator is suspended
and not on the stack."""


def write_beat(path: Path, beat: Beat) -> None:
    """Write a heartbeat. Disk errors are ignored: the main thread reports them.

    One write of a fixed size into the same blocks: no rename, and no free space needed on a full disk. Reopened each
    time, since a network file system shows other hosts a file's content when it is closed.
    """
    text = json.dumps(beat).encode()[:_FILE_BYTES].ljust(_FILE_BYTES)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(fd, text, 0)
        finally:
            os.close(fd)
    except OSError:
        pass


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object of a file; None if it is missing, partial or damaged."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def stack_of(thread: int) -> list[str]:
    """The innermost frames of a thread, by name and line; without source text, which would be read from disk."""
    frame, lines = sys._current_frames().get(thread), []
    while frame is not None and len(lines) < _STACK_DEPTH:
        code = frame.f_code
        lines.append(f"{code.co_filename[-120:]}:{frame.f_lineno} {code.co_name}")
        frame = frame.f_back
    return lines


def waits_for_others(beat: Beat) -> bool:
    """Whether the rank waits for other ranks: in a collective, according to its stack or to the flight recorder (on a
    GPU, where the stack shows a wait for the device), or for batches of a queue."""
    file, function = _QUEUE
    return bool(beat.get("collective")) or any(
        _COLLECTIVES in line or (file in line and line.endswith(function)) for line in beat.get("stack", ())
    )


def process_state(beat: Beat) -> str:
    """State of a silent rank's process according to the kernel, for messages; empty if it is on another host."""
    if beat.get("host") != socket.gethostname():
        return ""
    try:
        stat = Path(f"/proc/{beat['pid']}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ", its process has exited"
    return ", its process is stopped (SIGSTOP)" if stat.rpartition(")")[2].split()[0] == "T" else ""
