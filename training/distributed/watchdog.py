"""Detects a hanging rank long before a collective times out: a stopped process, or one blocked while reading data.

A thread in every rank writes a heartbeat once per second to a small file of the run directory: stage, step and the
stack of the main thread. Rank 0 compares them; rank 1 watches rank 0. A hanging rank is reported with its last stack,
all other ranks print their stacks to their logs, and the attempt ends.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.errors import RunFault
from tunesmith.rundir.atomic import write_json
from tunesmith.rundir.failure import record_end
from tunesmith.rundir.paths import RunDir
from tunesmith.training.distributed.fatal import terminate
from tunesmith.training.distributed.ranks import COLLECTIVE_TIMEOUT_S, Ranks

BEAT_S = 1.0
STAGES = {"data": "reading data", "forward": "in forward and backward", "update": "in the optimizer step"}
"""Stages with a time limit, in the order of a step. Evaluation, saving and export have none; a process without a
heartbeat is detected there too."""
SLOWDOWN = 10.0
"""A stage may take this many times its longest duration so far: machine load and row lengths vary."""
_FILE_BYTES = 4096
_STACK_DEPTH = 16
_COLLECTIVES = "distributed_c10d.py"

Beat = dict[str, Any]


@dataclass
class _RankState:
    """The watcher's view of a rank: its last beat, seconds without a beat, seconds without progress."""

    beat: Beat = field(default_factory=dict)
    silent_s: float = 0.0
    still_s: float = 0.0


class Watchdog:
    """hang_timeout_s: limit without a heartbeat, and for one stage of a step unless earlier ones took longer."""

    def __init__(self, run: RunDir, ranks: Ranks, attempt: int, hang_timeout_s: float):
        self._run, self._ranks, self._attempt, self._timeout_s = run, ranks, attempt, hang_timeout_s
        self._place: tuple[str, int, float] = ("", 0, time.monotonic())
        self._longest: dict[str, float] = {}
        self._main = threading.main_thread().ident or 0
        self._number = 0
        self._checked = time.monotonic()
        self._ended = threading.Event()
        watched = range(ranks.world_size) if ranks.is_first else range(1) if ranks.rank == 1 else range(0)
        self._seen = {rank: _RankState() for rank in watched}
        run.beats.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Start the watchdog thread."""
        threading.Thread(target=self._loop, name="watchdog", daemon=True).start()

    def enter(self, stage: str, step: int) -> None:
        """Record that the main thread enters a stage: one of STAGES, or "" for work without a limit."""
        now = time.monotonic()
        before, _, since = self._place
        if before:
            self._longest[before] = max(self._longest.get(before, 0.0), now - since)
        self._place = (stage, step, now)

    def close(self) -> None:
        """Stop the thread and delete the heartbeat file."""
        self._ended.set()
        self._file(self._ranks.rank).unlink(missing_ok=True)

    def beat(self) -> None:
        """Write the heartbeat of this rank. Disk errors are ignored: the main thread reports them."""
        stage, step, _ = self._place
        self._number += 1
        beat = {
            "attempt": self._attempt,
            "rank": self._ranks.rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "number": self._number,
            "stage": stage,
            "step": step,
            "limit_s": self._limit_s(stage),
            "stack": _stack_of(self._main),
        }
        # One write of a fixed size into the same blocks: no rename, and no free space needed on a full disk. Reopened
        # each time, since a network file system shows other hosts a file's content when it is closed.
        text = json.dumps(beat).encode()[:_FILE_BYTES].ljust(_FILE_BYTES)
        try:
            fd = os.open(self._file(self._ranks.rank), os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.pwrite(fd, text, 0)
            finally:
                os.close(fd)
        except OSError:
            pass

    def check(self) -> RunFault | None:
        """Compare the heartbeats of the watched ranks. Returns the fault of the rank that blocks the others, if any."""
        now = time.monotonic()
        # If the watcher itself was suspended, the other ranks must not count as silent for that time.
        elapsed = min(now - self._checked, 2 * BEAT_S)
        self._checked = now
        for rank, seen in self._seen.items():
            beat = self._read(rank)
            news = beat is not None and beat["number"] != seen.beat.get("number")
            moved = beat is not None and (beat["stage"], beat["step"]) != (
                seen.beat.get("stage"),
                seen.beat.get("step"),
            )
            seen.silent_s = 0.0 if news else seen.silent_s + elapsed
            seen.still_s = 0.0 if moved else seen.still_s + elapsed
            seen.beat = beat or seen.beat
        silent = [rank for rank, seen in self._seen.items() if seen.silent_s > self._timeout_s]
        if silent:
            return self._fault(silent, silent=True)
        if any(seen.beat.get("limit_s") and seen.still_s > seen.beat["limit_s"] for seen in self._seen.values()):
            return self._fault(self._stragglers(), silent=False)
        return None

    def _loop(self) -> None:
        self.beat()  # immediately, so that host and pid are known if the process stops within its first second
        while not self._ended.wait(BEAT_S):
            self.beat()
            verdict = self._run.beats / f"hang-{self._attempt}.json"
            if verdict.is_file() and (recorded := _read_json(verdict)) is not None:
                # The watcher exits first: a rank that sees its connections close would report that instead.
                terminate(RunFault(**recorded), stacks=True, wait_s=5 * BEAT_S)
            fault = self.check() if self._seen else None
            if fault is not None and not self._ended.is_set():
                record_end(self._run, self._attempt, fault)
                write_json(verdict, {"what": fault.what, "where": fault.where, "remedy": fault.remedy})
                terminate(fault, stacks=True, wait_s=2 * BEAT_S)

    def _limit_s(self, stage: str) -> float | None:
        if not stage:
            return None
        if stage not in self._longest:  # the first execution of a stage may load and compile
            return max(self._timeout_s, COLLECTIVE_TIMEOUT_S)
        return max(self._timeout_s, SLOWDOWN * self._longest[stage])

    def _stragglers(self) -> Sequence[int]:
        """The ranks that the others wait for: those with the least progress, preferably outside any collective."""
        order = {"": -1, **{stage: number for number, stage in enumerate(STAGES)}}
        place = {
            rank: (seen.beat.get("step", 0), order[seen.beat.get("stage", "")]) for rank, seen in self._seen.items()
        }
        least = min(place.values())
        last = [rank for rank, at in place.items() if at == least]
        working = [r for r in last if not any(_COLLECTIVES in line for line in self._seen[r].beat.get("stack", ()))]
        return working or last

    def _fault(self, ranks: Sequence[int], *, silent: bool) -> RunFault:
        seen = self._seen[ranks[0]]
        beat, seconds = seen.beat, seen.silent_s if silent else seen.still_s
        others = f", and {len(ranks) - 1} more ranks" if len(ranks) > 1 else ""
        who = f"rank {ranks[0]} on {beat.get('host', 'an unknown host')} (pid {beat.get('pid', '?')}){others}"
        step = beat.get("step", 0)
        doing = (
            STAGES.get(beat.get("stage", ""), "between steps") + f", step {step}" if step else "before its first step"
        )
        what = f"{who} hangs {doing}: "
        what += f"no heartbeat for {seconds:.0f} s{_state_of(beat)}" if silent else f"no progress for {seconds:.0f} s"
        where = str(self._run.log(self._attempt, ranks[0])) + "; stack, innermost frame first:"
        return RunFault(
            what,
            where=where + "".join(f"\n              | {line}" for line in beat.get("stack", ())),
            remedy="the run can be resumed; if it was only slow, start a run with a higher hang_timeout_s",
        )

    def _read(self, rank: int) -> Beat | None:
        beat = _read_json(self._file(rank))
        return beat if beat is not None and beat.get("attempt") == self._attempt else None

    def _file(self, rank: int) -> Path:
        return self._run.beats / f"rank-{rank:05d}.json"


def _stack_of(thread: int) -> list[str]:
    """The innermost frames of a thread, by name and line; without source text, which would be read from disk."""
    frame, lines = sys._current_frames().get(thread), []
    while frame is not None and len(lines) < _STACK_DEPTH:
        code = frame.f_code
        lines.append(f"{code.co_filename[-120:]}:{frame.f_lineno} {code.co_name}")
        frame = frame.f_back
    return lines


def _state_of(beat: Beat) -> str:
    """State of a silent rank's process according to the kernel, if it is on this host."""
    if beat.get("host") != socket.gethostname():
        return ""
    try:
        stat = Path(f"/proc/{beat['pid']}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ", its process has exited"
    return ", its process is stopped (SIGSTOP)" if stat.rpartition(")")[2].split()[0] == "T" else ""


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
