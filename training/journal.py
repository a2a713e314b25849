"""Events and status that rank 0 records while it trains. The journals of other ranks write nothing."""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from tunesmith.errors import ExitCode, TunesmithError
from tunesmith.rundir.event_log import EventLog
from tunesmith.rundir.events import EndEvent, Event, PhaseEvent, StepEvent, WarningEvent
from tunesmith.rundir.failure import record_end
from tunesmith.rundir.fence import may_write, require_newest
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import FINAL, Status, read_status
from tunesmith.training.distributed.ranks import Ranks

HEARTBEAT_S = 5.0


class Journal:
    """Writes events.jsonl and status.json. A thread updates the heartbeat, also during a long forward pass."""

    def __init__(self, run: RunDir, ranks: Ranks, *, attempt: int, total_steps: int):
        self.log = EventLog(run.events) if ranks.is_first else None
        self._run, self._attempt = run, attempt
        self._lock = threading.Lock()
        self._started = time.time()
        self._steps_here = 0
        self._seconds_here = 0.0
        self.status = Status("loading", total_steps=total_steps, attempt=attempt, started=self._started)
        self._ended = threading.Event()
        self._write_status()
        if self.log is not None:
            threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def write(self, event: Event) -> None:
        """Append an event. Raises Superseded if a newer attempt of the run has started, RunLost if the run directory is
        no longer that of the run."""
        if self.log is not None:
            require_newest(self._run, self._attempt)
            self.log.write(event)

    def warning(self, message: str, code: str) -> None:
        """Write a `warning` event."""
        self.write(WarningEvent(message=message, code=code))

    def warn_of_damage(self, faults: Sequence[str]) -> None:
        """Write a warning for damaged files that record what was done, if there are any: training does not read them,
        but the proofs of the run fail."""
        if faults:
            more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
            self.warning(
                f"the record of the run was damaged: {faults[0]}{more}; `tunesmith prove {self._run.root}` lists it",
                code="record_damaged",
            )

    def phase(self, phase: str) -> None:
        """Write a `phase` event and update the status."""
        self.write(PhaseEvent(phase=phase))
        self.status.phase = phase
        self._write_status()

    def step(self, event: StepEvent) -> None:
        """Write the event and update the estimated time left."""
        self.write(event)
        total = self.status.total_steps
        self._steps_here += 1
        self._seconds_here += event.step_s or 0.0
        self.status.step = event.step
        self.status.eta_s = (total - event.step) * self._seconds_here / self._steps_here
        if time.time() - self.status.heartbeat > 0.5 or event.step == total:
            self._write_status()

    def end(self, outcome: str, exit_code: ExitCode) -> None:
        """Write the `end` event durably, and the final status."""
        self._ended.set()
        step, code = self.status.step, int(exit_code)
        self.write(EndEvent(outcome=outcome, step=step, exit_code=code, seconds=self._seconds()))
        if self.log is not None:
            self.log.sync()
        self.status.phase, self.status.exit_code, self.status.eta_s = outcome, code, None
        self._write_status()

    def fail(self, error: TunesmithError) -> None:
        """Write the `error` and `end` events and the final status. Never raises, see `record_end`.

        Called on any rank: the first to record its error names the cause, others see lost connections afterwards.
        """
        self._ended.set()
        with self._lock:
            record_end(self._run, self._attempt, error, step=self.status.step, seconds=self._seconds())

    def _seconds(self) -> float:
        return round(time.time() - self._started, 3)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            with suppress(OSError):  # the main thread reports it
                self._write_status()

    def _write_status(self) -> None:
        """A failure already recorded for this attempt (a hang, by the watchdog) is kept: no heartbeat overwrites it."""
        if self.log is None or not may_write(self._run, self._attempt):
            return
        with self._lock:
            stored = read_status(self._run.status)
            ended = stored is not None and stored.attempt == self._attempt and stored.phase in FINAL
            if not ended or self.status.phase in FINAL:
                self.status.write(self._run.status)
