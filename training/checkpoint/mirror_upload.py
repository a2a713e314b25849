"""Upload of committed checkpoints to the mirror, with its events."""

import time

from tunesmith.errors import TunesmithError
from tunesmith.rundir.events import MirrorEvent
from tunesmith.rundir.fence import RunLost, Superseded
from tunesmith.rundir.paths import RunDir, step_of
from tunesmith.training.checkpoint.checkpoints import committed
from tunesmith.training.checkpoint.mirror import Mirror
from tunesmith.training.journal import Journal


class MirrorUpload:
    """Uploads committed checkpoints of a run and tracks the last upload. Used by one thread at a time.

    first_step: the step from which this attempt resumed; an earlier attempt may have uploaded its checkpoint.
    """

    def __init__(self, mirror: Mirror, run: RunDir, journal: Journal, first_step: int):
        self._mirror, self._run, self._journal, self._first_step = mirror, run, journal, first_step
        self._uploaded: int | None = None

    def send(self, step: int, best: int | None) -> None:
        """Upload a checkpoint, then delete those that are not kept locally, except the best. A failure is a warning."""
        try:
            self._send(step)
        except (Superseded, RunLost):
            raise
        except TunesmithError as error:
            self._journal.warning(f"step {step} is not in the mirror: {error}", code="mirror_failed")
            return
        self._retain(best)

    def require(self, step: int, best: int | None) -> None:
        """Upload the last checkpoint of an attempt unless it is in the mirror. Raises RunFault if that fails."""
        if step == self._uploaded or (step == self._first_step and step in self._mirror.steps()):
            return
        self._send(step)
        self._retain(best)

    def _send(self, step: int) -> None:
        started = time.perf_counter()
        url = self._mirror.send(self._run.checkpoint(step))
        self._uploaded = step
        self._journal.write(MirrorEvent(step=step, url=url, seconds=time.perf_counter() - started))

    def _retain(self, best: int | None) -> None:
        kept = {step_of(path) for path in committed(self._run)} | {best}
        try:
            self._mirror.retain({step for step in kept if step is not None})
        except TunesmithError as error:
            self._journal.warning(f"older checkpoints remain in the mirror: {error}", code="mirror_failed")
