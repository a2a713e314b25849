"""Whether a process of this machine is running: process ids are reused, and a killed process stays as a zombie."""

import os
import time
from pathlib import Path

_CLOCK_SLACK_S = 5.0  # the boot time is only known to a clock tick, and clocks get adjusted


def is_alive(pid: int, known_at: float | None = None) -> bool:
    """Whether the process is running. A zombie, which its parent has not reaped, has exited.

    known_at: a time (seconds since the epoch) at which the process was running: one that started later is another.
    """
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        uptime_s = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    except OSError:
        return True  # no /proc: only the pid decides
    state = stat.rpartition(")")[2].split()
    if state[0] in ("Z", "X"):
        return False
    started = time.time() - uptime_s + int(state[19]) / os.sysconf("SC_CLK_TCK")
    return known_at is None or started <= known_at + _CLOCK_SLACK_S
