"""Detects a hanging rank long before a collective times out: a stopped process, or one blocked while reading data.

A rank is in a named stage at any time (training.distributed.stages). A thread in every rank writes a heartbeat once per
second to a small file of the run directory: stage, step, units of progress (tunesmith/progress.py) and the stack of the
main thread. Rank 0 compares them; each other rank checks that the one before it still writes its own. A hanging rank is
reported with its last stack, all other ranks print their stacks to their logs, and the attempt ends.

Limits: `hang_timeout_s` without a heartbeat; the same without progress, or SLOWDOWN times the longest time that one
unit has taken in the stage; COARSE_FACTOR times as long in stages with calls that cannot report progress;
`stage_timeout_s` in one stage altogether. Ranks that wait for others do not count as hanging while these are within
their limits.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.errors import RunFault
from tunesmith.progress import Progress, progress_of
from tunesmith.rundir.atomic import write_json
from tunesmith.rundir.failure import record_end
from tunesmith.rundir.faults import fault_point
from tunesmith.rundir.fence import loss_of
from tunesmith.rundir.paths import RunDir
from tunesmith.training.distributed.fatal import terminate
from tunesmith.training.distributed.flight_recorder import pending_collective
from tunesmith.training.distributed.heartbeat import (
    Beat,
    process_state,
    read_json,
    stack_of,
    waits_for_others,
    write_beat,
)
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.distributed.stages import COARSE, ORDER, STEP, Stage

BEAT_S = 1.0
SLOWDOWN = 10.0
"""A unit of progress may take this many times as long as the longest so far: machine load and row lengths vary."""
COARSE_FACTOR = 6.0
"""30 minutes with the default hang_timeout_s: a first step that compiles, or reading 140 GB at 100 MB/s, is faster."""
_RANK_0_FIRST_S = 15 * BEAT_S
"""How much longer the other ranks wait than rank 0, so that one rank reports."""
LOST_GRACE_S = 10.0
"""Time for the main thread to end after the run directory was deleted or replaced."""


_END_S = 30.0
"""Time for the watchdog thread to end a process whose error is the consequence of a hang."""


@dataclass
class _RankState:
    """The watcher's view of a rank: its last beat, and seconds without a beat, without progress, in its stage.

    ended: whether it has deleted its heartbeat, since it ended normally.
    """

    beat: Beat = field(default_factory=dict)
    silent_s: float = 0.0
    still_s: float = 0.0
    stage_s: float = 0.0
    ended: bool = False

    @property
    def place(self) -> tuple[int, str]:
        return self.beat.get("step", 0), self.beat.get("stage", Stage.START)

    def update(self, beat: Beat | None, elapsed_s: float, ended: bool) -> None:
        """Take the present beat into account; None if it cannot be read."""
        last, place, self.ended = self.beat, self.place, ended
        self.beat = beat or last
        self.silent_s = 0.0 if self.beat.get("number") != last.get("number") else self.silent_s + elapsed_s
        self.stage_s = 0.0 if self.place != place else self.stage_s + elapsed_s
        moved = self.place != place or self.beat.get("units") != last.get("units")
        self.still_s = 0.0 if moved else self.still_s + elapsed_s


class Watchdog:
    """hang_timeout_s, stage_timeout_s: as in the recipe. progress: of the watched thread; None: of the main thread."""

    def __init__(
        self,
        run: RunDir,
        ranks: Ranks,
        attempt: int,
        *,
        hang_timeout_s: float,
        stage_timeout_s: float,
        progress: Progress | None = None,
    ):
        self._run, self._ranks, self._attempt = run, ranks, attempt
        self._hang_timeout_s, self._stage_timeout_s = hang_timeout_s, stage_timeout_s
        self._main = threading.main_thread().ident or 0
        self._progress = progress or progress_of(self._main)
        self._progress.restart()
        self._stage, self._step = Stage.START, 0
        self._longest_s: dict[Stage, float] = {}
        self._number, self._started, self._last_units = 0, False, -1
        self._checked = time.monotonic()
        self._ended = threading.Event()
        self._verdict = run.beats / f"hang-{attempt}.json"
        self._seen = {rank: _RankState() for rank in _watched_by(ranks)}
        self._lost_since: float | None = None
        run.beats.mkdir(exist_ok=True)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Context in which the watchdog thread runs, and after it until `close`.

        If another rank hangs, the connections to it break: such an error of this rank is not raised once the hang is
        reported, but the watchdog thread ends this process with the report.
        """
        self._started = True
        threading.Thread(target=self._loop, name="watchdog", daemon=True).start()
        try:
            yield
        except Exception:
            if self._verdict.is_file():
                self._ended.wait(_END_S)
            raise

    @contextmanager
    def stage(self, stage: Stage, step: int) -> Iterator[None]:
        """Context of a stage of the main thread; afterwards it is in the surrounding stage again.

        step: the step in progress, or the number of completed steps. Faults of tests: `stage.<stage>`.
        """
        outer = self._stage
        self._enter(stage, step)
        if self._started and stage not in STEP:  # a process that stops in its first second here is named with the stage
            self.beat()
        try:
            fault_point(f"stage.{stage}")
            yield
        finally:
            self._enter(outer, max(step, self._step))

    def close(self) -> None:
        """Stop the thread and delete the heartbeat file: the rank has ended normally."""
        self._ended.set()
        if loss_of(self._run) is None:
            self._file(self._ranks.rank).unlink(missing_ok=True)

    def beat(self) -> None:
        """Write the heartbeat of this rank."""
        stage, step = self._stage, self._step
        self._number += 1
        beat = {
            "attempt": self._attempt,
            "rank": self._ranks.rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "number": self._number,
            "stage": stage,
            "step": step,
            "units": self._progress.units,
            "limit_s": self._limit_s(stage),
            "collective": self._collective(),
            "stack": stack_of(self._main),
        }
        write_beat(self._file(self._ranks.rank), beat)

    def _collective(self) -> str:
        """The collective that this rank is in, if it has made no progress since the last beat."""
        units, self._last_units = self._last_units, self._progress.units
        is_waiting = self._ranks.world_size > 1 and units == self._last_units
        return pending_collective() if is_waiting else ""

    def check(self) -> RunFault | None:
        """Compare the heartbeats of the watched ranks. Returns the fault of the rank that blocks the others, if any."""
        now = time.monotonic()
        # If the watcher itself was suspended, the other ranks must not count as silent for that time.
        elapsed_s = min(now - self._checked, 2 * BEAT_S)
        self._checked = now
        for rank, seen in self._seen.items():
            seen.update(self._read(rank), elapsed_s, ended=bool(seen.beat) and not self._file(rank).exists())
        if silent := [rank for rank, seen in self._seen.items() if self._is_silent(rank, seen)]:
            return self._fault(silent, f"no heartbeat for {self._seen[silent[0]].silent_s:.0f} s", silent=True)
        if not self._ranks.is_first or not (blocking := self._blocking()):
            return None
        seen = self._seen[blocking[0]]
        if seen.stage_s > self._stage_timeout_s:
            return self._fault(blocking, f"still not done after {seen.stage_s:.0f} s", key="stage_timeout_s")
        return self._fault(blocking, f"no progress for {seen.still_s:.0f} s")

    def _enter(self, stage: Stage, step: int) -> None:
        self._progress.advance()
        self._longest_s[self._stage] = max(self._longest_s.get(self._stage, 0.0), self._progress.longest_s)
        self._progress.restart()
        self._stage, self._step = stage, step

    def _loop(self) -> None:
        self.beat()  # immediately, so that host and pid are known if the process stops within its first second
        while not self._ended.wait(BEAT_S):
            if self._is_lost():
                continue
            self.beat()
            if self._verdict.is_file() and (recorded := read_json(self._verdict)) is not None:
                terminate(RunFault(**recorded), stacks=True, wait_s=2 * BEAT_S)
            fault = self.check()
            if fault is not None and not self._ended.is_set():
                record_end(self._run, self._attempt, fault)
                with suppress(OSError):
                    write_json(self._verdict, {"what": fault.what, "where": fault.where, "remedy": fault.remedy})
                terminate(fault, stacks=True, wait_s=2 * BEAT_S)

    def _is_lost(self) -> bool:
        """Whether the run directory is no longer that of the run.

        Terminates the process if the main thread, which checks this at every step and event, does not end in time: it
        may be evaluating or exporting for hours."""
        if (error := loss_of(self._run)) is None:
            self._lost_since = None
            return False
        self._lost_since = self._lost_since or time.monotonic()
        if time.monotonic() - self._lost_since > LOST_GRACE_S:
            terminate(error, stacks=False)
        return True

    def _limit_s(self, stage: Stage) -> float:
        """Limit without progress in a stage, from this rank's experience."""
        is_coarse = stage in COARSE or (stage in STEP and stage not in self._longest_s)
        least_s = self._hang_timeout_s * (COARSE_FACTOR if is_coarse else 1.0)
        longest_s = max(self._longest_s.get(stage, 0.0), self._progress.longest_s)
        return min(max(least_s, SLOWDOWN * longest_s), self._stage_timeout_s)

    def _is_silent(self, rank: int, seen: _RankState) -> bool:
        patience_s = 0.0 if self._ranks.is_first or rank == 0 else _RANK_0_FIRST_S
        return not seen.ended and seen.silent_s > self._hang_timeout_s + patience_s

    def _is_over(self, seen: _RankState) -> bool:
        return seen.still_s > seen.beat.get("limit_s", float("inf")) or seen.stage_s > self._stage_timeout_s

    def _blocking(self) -> Sequence[int]:
        """The ranks over their limit that the others wait for, those that are furthest behind; empty if there are none.

        A rank that waits for others cannot be the one. If all of them wait, they are in different collectives, or their
        network does not transfer anything.
        """
        running = {rank: seen for rank, seen in self._seen.items() if not seen.ended}
        over = [rank for rank, seen in running.items() if self._is_over(seen)]
        working = [rank for rank, seen in running.items() if not waits_for_others(seen.beat)]
        candidates = (
            [rank for rank in over if rank in working] if working else over if len(over) == len(running) else []
        )
        places = {rank: (running[rank].place[0], ORDER[Stage(running[rank].place[1])]) for rank in candidates}
        return [rank for rank in candidates if places[rank] == min(places.values())]

    def _fault(self, ranks: Sequence[int], why: str, *, silent: bool = False, key: str = "hang_timeout_s") -> RunFault:
        beat = self._seen[ranks[0]].beat
        others = f", and {len(ranks) - 1} more ranks" if len(ranks) > 1 else ""
        who = f"rank {ranks[0]} on {beat.get('host', 'an unknown host')} (pid {beat.get('pid', '?')}){others}"
        step = beat.get("step", 0)
        doing = Stage(beat.get("stage", Stage.START)).description
        when = f", step {step}" if step else " before its first step"
        what = f"{who} hangs {doing}{when}: {why}"
        where = str(self._run.log(self._attempt, ranks[0])) + "; stack, innermost frame first:"
        lines = [*self._collectives(), *beat.get("stack", ())]
        return RunFault(
            what + (process_state(beat) if silent else ""),
            where=where + "".join(f"\n              | {line}" for line in lines),
            remedy=f"the run can be resumed; if it was only slow, start a run with a higher {key}",
        )

    def _collectives(self) -> list[str]:
        """The collectives that ranks are in, with these ranks."""
        by_name: dict[str, list[int]] = {}
        for rank, seen in self._seen.items():
            if name := seen.beat.get("collective"):
                by_name.setdefault(name, []).append(rank)
        return [
            f"in {name}: {'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, ranks[:8]))}"
            + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
            for name, ranks in by_name.items()
        ]

    def _read(self, rank: int) -> Beat | None:
        beat = read_json(self._file(rank))
        return beat if beat is not None and beat.get("attempt") == self._attempt else None

    def _file(self, rank: int) -> Path:
        return self._run.beats / f"rank-{rank:05d}.json"


def _watched_by(ranks: Ranks) -> range:
    """Rank 0 watches all ranks, each other one the rank before it: all of a host may be lost at once."""
    return range(ranks.world_size) if ranks.is_first else range(ranks.rank - 1, ranks.rank)
