"""What rank 0 tells the world while it trains: events and status. Other ranks hold a silent one."""

import threading
import time
from typing import Any

from tunesmith.rundir.events import EventLog
from tunesmith.rundir.fence import newest_attempt, require_newest
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import FINAL, Status, read_status
from tunesmith.training.distributed.ranks import Ranks

HEARTBEAT_S = 5.0


class Journal:
    """Writes events.jsonl and status.json. A thread renews the heartbeat, so that a long forward pass looks alive."""

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

    def event(self, kind: str, **fields: Any) -> None:
        """Raises Superseded where a newer attempt of the run has begun."""
        if self.log is not None:
            require_newest(self._run, self._attempt)
            self.log.write(kind, **fields)

    def warning(self, message: str, code: str) -> None:
        self.event("warning", message=message, code=code)

    def phase(self, phase: str) -> None:
        self.event("phase", phase=phase)
        self.status.phase = phase
        self._write_status()

    def step(self, **fields: Any) -> None:
        """The `step` event; adds total_steps and tokens_per_s, and brings the estimated end up to date."""
        total = self.status.total_steps
        rate = fields["num_tokens"] / fields["step_s"] if fields["step_s"] else 0.0
        self.event("step", total_steps=total, tokens_per_s=rate, **fields)
        self._steps_here += 1
        self._seconds_here += fields["step_s"]
        self.status.step = fields["step"]
        self.status.eta_s = (total - fields["step"]) * self._seconds_here / self._steps_here
        if time.time() - self.status.heartbeat > 0.5 or fields["step"] == total:
            self._write_status()

    def end(self, outcome: str, step: int, exit_code: int) -> None:
        """The `end` event, durable, and the final status."""
        self._ended.set()
        seconds = round(time.time() - self._started, 3)
        self.event("end", outcome=outcome, step=step, exit_code=exit_code, seconds=seconds)
        if self.log is not None:
            self.log.sync()
        self.status.phase, self.status.step, self.status.exit_code, self.status.eta_s = outcome, step, exit_code, None
        self._write_status()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            self._write_status()

    def _write_status(self) -> None:
        """A failure that was written down for this attempt (a hang, by the watchdog) stands: no heartbeat undoes it."""
        if self.log is None or newest_attempt(self._run) > self._attempt:
            return
        with self._lock:
            told = read_status(self._run.status)
            ended = told is not None and told.attempt == self._attempt and told.phase in FINAL
            if not ended or self.status.phase in FINAL:
                self.status.write(self._run.status)
