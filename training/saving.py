"""Saving during a run: a checkpoint at the steps of the plan and at the end, written while the loop continues."""

import time
from contextlib import nullcontext
from functools import partial

from tunesmith.rundir.events import CheckpointEvent
from tunesmith.rundir.ledger import Ledger
from tunesmith.training.checkpoint.checkpoints import (
    Content,
    gather_for_save,
    retain,
    save_checkpoint,
    tensors_of,
    write_checkpoint,
)
from tunesmith.training.checkpoint.fingerprints import fingerprints_of
from tunesmith.training.checkpoint.mirror import Mirror
from tunesmith.training.checkpoint.mirror_upload import MirrorUpload
from tunesmith.training.checkpoint.staging import Background, Staging
from tunesmith.training.checkpoint.state import RunState
from tunesmith.training.distributed.interruption import Interruption
from tunesmith.training.distributed.stages import Stage
from tunesmith.training.rank_context import RankContext

LAST = ("end", "preemption")
"""Reasons for the last checkpoint of a run or attempt."""


class Saving:
    """Every rank calls each method. mirror: on the first rank, if the recipe has one."""

    def __init__(
        self, context: RankContext, state: RunState, ledger: Ledger, interruption: Interruption, mirror: Mirror | None
    ):
        self._context, self._state, self._ledger, self._interruption = context, state, ledger, interruption
        self._upload = MirrorUpload(mirror, context.run, context.journal, state.step) if mirror else None
        self._staging, self._background = Staging(), Background()
        self._saved_step = state.step if state.step else None

    def save(self, reason: str) -> None:
        """Commit a checkpoint of the current step and delete those beyond the recipe's limit; once per step.

        If the plan has memory for it, a staged copy is written asynchronously: the loop blocks only while the copy is
        made, and while an earlier one is still being written. The last one of a run or attempt is written
        synchronously.
        """
        stage = self._context.watchdog.stage(Stage.CHECKPOINT, self._state.step)
        with stage, self._interruption.saving() if reason in LAST else nullcontext():
            self._save(reason)

    def close(self) -> None:
        """Free the staged copy, after the last checkpoint: the export needs the memory."""
        self._background.wait()
        self._staging = Staging()

    def check(self) -> None:
        """Raise the error of an asynchronous checkpoint write, if any; called every step."""
        self._background.check()

    def _save(self, reason: str) -> None:
        context, waiting = self._context, partial(self._context.watchdog.stage, Stage.DELIVERY, self._state.step)
        if self._state.step != self._saved_step:
            self._saved_step = self._state.step
            started = time.perf_counter()
            self._ledger.sync()
            context.ranks.barrier()  # the ledgers of all ranks must be on disk before the checkpoint
            with waiting():
                exists = context.ranks.from_first(self._exists)
            if context.ranks.is_first:
                self._save_first(reason, exists, started)
            elif not exists:
                gather_for_save(context.engine)
        if reason in LAST:
            with waiting():
                context.ranks.from_first(self._complete)

    def _exists(self) -> bool:
        """Wait for the background write; return whether the checkpoint of this step already exists."""
        self._background.wait()
        return self._context.run.checkpoint(self._state.step).is_dir()

    def _complete(self) -> None:
        """Wait until the last checkpoint is on disk and in the mirror."""
        self._background.wait()
        if self._upload is not None:
            self._upload.require(self._state.step, self._kept_best)

    def _save_first(self, reason: str, exists: bool, started: float) -> None:
        """Save on the first rank. started: when the loop stopped for it (time.perf_counter)."""
        context = self._context
        content = Content.of(self._state, context.engine, fingerprints_of(context.plan))
        best = self._kept_best
        # Nothing is computed while the last one is written: a copy would only take memory.
        is_last = reason in LAST or content.step == context.plan.batch.total_steps
        if not exists and not is_last and context.plan.compute.staging_bytes and self._stage(content):
            stall_s = time.perf_counter() - started

            def work() -> None:
                write_checkpoint(context.run, content, self._staging.tensors(), attempt=context.attempt)
                self._saved(content.step, reason, best, started, stall_s)

            self._background.start(work)
            return
        if not exists:
            save_checkpoint(
                context.run,
                self._state,
                context.engine,
                attempt=context.attempt,
                fingerprints=content.fingerprints,
            )
        self._saved(content.step, reason, best, started, time.perf_counter() - started)

    def _stage(self, content: Content) -> bool:
        try:
            self._staging.fill({**content.shapes, **content.moments}, tensors_of(self._context.engine))
        except MemoryError:
            self._context.journal.warning(
                "not enough memory to stage the checkpoint: the loop waits while it is written",
                code="no_staging",
            )
            return False
        return True

    def _saved(self, step: int, reason: str, best: int | None, started: float, stall_s: float) -> None:
        """Record a committed checkpoint, then apply retention; in the writer's thread."""
        path = self._context.run.checkpoint(step)
        self._context.journal.write(
            CheckpointEvent(
                step=step,
                path=str(path),
                num_bytes=sum(file.stat().st_size for file in path.iterdir()),
                seconds=time.perf_counter() - started,
                stall_s=stall_s,
                reason=reason,
            )
        )
        retain(self._context.run, self._context.plan.recipe.checkpoint.keep_last, best)
        if self._upload is not None and reason not in LAST:  # `_complete` requires the upload of the last one
            self._upload.send(step, best)

    @property
    def _kept_best(self) -> int | None:
        """The step whose checkpoint is kept for the export, if early stopping is on."""
        return self._state.best_step if self._context.plan.recipe.evaluation.early_stopping else None
