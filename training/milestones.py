"""What happens at certain steps, called by name: evaluate, save, and the work before and after training."""

import json
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from tunesmith.configs.plan import Plan
from tunesmith.configs.recipe import Recipe
from tunesmith.data.index.token_index import TokenIndex
from tunesmith.data.tokenization.tokenizer import Tokenizer
from tunesmith.errors import RunFault
from tunesmith.evaluation.held_out import score_held_out, token_facts
from tunesmith.evaluation.task_answers import task_answers
from tunesmith.evaluation.trained import load_trained
from tunesmith.rundir.commit import fault_point
from tunesmith.rundir.events import read_events
from tunesmith.rundir.fence import require_newest
from tunesmith.rundir.ledger import Ledger
from tunesmith.rundir.paths import RunDir
from tunesmith.training.auxiliary_evaluation import Beside
from tunesmith.training.checkpoint.checkpoints import (
    Content,
    load_trained_parameters,
    retain,
    save_checkpoint,
    take_part,
    tensors_of,
    write_checkpoint,
)
from tunesmith.training.checkpoint.mirror import Mirror
from tunesmith.training.checkpoint.mirror_upload import Delivery
from tunesmith.training.checkpoint.staging import Background, Staging
from tunesmith.training.checkpoint.state import RunState
from tunesmith.training.distributed.interruption import Interruption
from tunesmith.training.distributed.ranks import Ranks
from tunesmith.training.engine.protocol import Engine
from tunesmith.training.export.export import export_run
from tunesmith.training.journal import Journal
from tunesmith.training.reference import Reference
from tunesmith.training.scoring import score_on_ranks

LAST = ("end", "preemption")
"""Reasons for the last checkpoint of a run or attempt."""


def fingerprints_of(plan: Plan) -> dict[str, str]:
    """What a checkpoint belongs to: the model, the data, and how the trained parameters came about.

    Nothing of resources and parallelism: these may change in the middle of a run.
    """
    recipe = plan.recipe
    task = [recipe.task, *(getattr(recipe, section).model_dump() for section in _sections(recipe))]
    return {
        "model": plan.model.fingerprint,
        "data": plan.data.fingerprint,
        "method": recipe.method.model_dump_json(),
        "seed": str(recipe.seed),
        "global_batch_size": str(recipe.optimization.global_batch_size),
        # A key that earlier versions did not know is left out while it changes nothing: their checkpoints go on.
        "optimization": recipe.optimization.model_dump_json(exclude=None if recipe.optimization.z_loss else {"z_loss"}),
        "task": json.dumps(task),
    }


def _sections(recipe: Recipe) -> list[str]:
    """Sections of tasks that a fingerprint covers: those that the first versions had, whatever the task, so that their
    checkpoints go on; of later ones that of the recipe's own task."""
    own = recipe.task_facts.section
    first = ["preference", "classification", "seq2seq"]
    return first if own is None or own in first else [*first, own]


class Milestones:
    """Holds what evaluation, saving and export need, so that the loop can name them in one line each."""

    def __init__(
        self,
        run: RunDir,
        plan: Plan,
        engine: Engine,
        state: RunState,
        tokenizer: Tokenizer,
        ranks: Ranks,
        journal: Journal,
        ledger: Ledger,
        attempt: int,
        reference: Reference,
        interruption: Interruption,
        mirror: Mirror | None = None,
    ):
        self.interruption = interruption
        self.delivery = Delivery(mirror, run, journal, state.step) if mirror else None
        self.run, self.plan, self.engine, self.state, self.tokenizer = run, plan, engine, state, tokenizer
        self.ranks, self.journal, self.ledger, self.attempt = ranks, journal, ledger, attempt
        self.reference = reference
        validation = plan.data.validation
        self.validation = TokenIndex.open(Path(validation.index)) if validation else None
        self.beside = Beside(run, plan, engine, tokenizer, ranks, journal)
        self._last_evaluation: dict[str, Any] | None = None
        self._staging, self._background = Staging(), Background()
        self._saved_step = state.step if state.step else None

    def before(self) -> None:
        """Measure the base model; only an attempt that starts from the first step does, and only once."""
        if self.state.step > 0:
            return
        told = self.ranks.from_first(self._told)
        if ("evaluation", "before") not in told:
            self.evaluate("before")
        self.beside.before(told)
        fault_point("before.answers")
        if ("answers", "before") not in told:
            self._answer("before")

    def evaluate(self, when: str) -> bool:
        """Score the validation rows; True where no earlier evaluation of this run was better."""
        if self.validation is None:
            return False
        if self._last_evaluation is not None and self._last_evaluation["step"] == self.state.step:
            # The same weights, scored a moment ago: at most the event's place in the story differs.
            if when != "during":
                self.journal.event("evaluation", **self._last_evaluation, when=when)
            return False
        phase = self.journal.status.phase
        self.journal.phase("evaluating")
        started = time.perf_counter()
        loss, facts = self.ranks.broadcast(self._score())
        stopping = self.plan.recipe.evaluation.early_stopping
        best = self.state.note_validation(loss, stopping.min_delta if stopping else 0.0)
        if stopping and self.state.evaluations_without_gain >= stopping.patience:
            self.state.stopped_early = True
        seconds = time.perf_counter() - started
        self._last_evaluation = {"step": self.state.step, **facts, "seconds": seconds, "best": best}
        self.journal.event("evaluation", **self._last_evaluation, when=when)
        self.journal.phase(phase)
        return best

    def save(self, reason: str) -> None:
        """Commit a checkpoint of the current step and delete those beyond what the recipe keeps; once a step.

        Where the plan has memory for it, a copy is written beside the loop, which stands still only while the copy is
        made, and while an earlier one is still being written. The last one of a run or attempt is waited for.
        """
        with self.interruption.saving() if reason in LAST else nullcontext():
            self._save(reason)

    def check(self) -> None:
        """Raise what went wrong in writing a checkpoint beside the loop; called every step."""
        self._background.check()

    def _save(self, reason: str) -> None:
        if self.state.step != self._saved_step:
            self._saved_step = self.state.step
            started = time.perf_counter()
            self.ledger.sync()
            self.ranks.barrier()  # the ledgers of all ranks are on disk before the checkpoint is
            stands = self.ranks.from_first(self._stands)
            if self.ranks.is_first:
                self._save_first(reason, stands, started)
            elif not stands:
                take_part(self.engine)
        if reason in LAST:
            self.ranks.from_first(self._end_saving)

    def _stands(self) -> bool:
        """Whether the checkpoint of this step is there already, once none is being written any more."""
        self._background.wait()
        return self.run.checkpoint(self.state.step).is_dir()

    def _end_saving(self) -> None:
        """The last checkpoint is on disk, and in the mirror."""
        self._background.wait()
        if self.delivery is not None:
            self.delivery.require(self.state.step, self._kept_best)

    def _save_first(self, reason: str, stands: bool, started: float) -> None:
        """The first rank's part of saving. started: when the loop stopped for it (time.perf_counter)."""
        content = Content.of(self.state, self.engine, fingerprints_of(self.plan))
        best = self._kept_best
        if not stands and self.plan.compute.staging_bytes and self._stage(content):
            stall_s = time.perf_counter() - started

            def work() -> None:
                write_checkpoint(self.run, content, self._staging.tensors(), attempt=self.attempt)
                self._saved(content.step, reason, best, started, stall_s)

            self._background.start(work)
            return
        if not stands:
            save_checkpoint(self.run, self.state, self.engine, attempt=self.attempt, fingerprints=content.fingerprints)
        self._saved(content.step, reason, best, started, time.perf_counter() - started)

    def _stage(self, content: Content) -> bool:
        try:
            self._staging.fill({**content.shapes, **content.moments}, tensors_of(self.engine))
        except MemoryError:
            self.journal.warning(
                "there is no memory for a copy of what is trained: the loop waits while the checkpoint is written",
                code="no_staging",
            )
            return False
        return True

    def _saved(self, step: int, reason: str, best: int | None, started: float, stall_s: float) -> None:
        """Tell of a committed checkpoint, then delete what the recipe does not keep; in the writer's thread."""
        path = self.run.checkpoint(step)
        self.journal.event(
            "checkpoint",
            step=step,
            path=str(path),
            num_bytes=sum(file.stat().st_size for file in path.iterdir()),
            seconds=time.perf_counter() - started,
            stall_s=stall_s,
            reason=reason,
        )
        retain(self.run, self.plan.recipe.checkpoint.keep_last, best)
        if self.delivery is not None and reason not in LAST:  # the last one must arrive: `_save` sees to it
            self.delivery.send(step, best)

    def after(self) -> None:
        """Take the best weights where the recipe asks for them, measure them, answer again, export."""
        if self.plan.recipe.evaluation.early_stopping:
            self.evaluate("during")
            self._take_best()
        self.evaluate("after")
        self.beside.after(self.state.step)
        self._answer("after")
        self.journal.phase("exporting")
        self.engine.close()
        self.ranks.from_first(self._export, patient=True)

    def _export(self) -> None:
        require_newest(self.run, self.attempt)
        model = self.engine.loss_module.model
        if self.engine.sharded:  # no rank has it: put together from its files, in the memory of the CPU
            model = load_trained(self.plan, self.run.checkpoint(self.state.step), device="cpu")
        result = export_run(
            model,
            self.run,
            self.plan,
            self.tokenizer,
            step=self.state.step,
            attempt=self.attempt,
            allowed=partial(require_newest, self.run, self.attempt),
        )
        self.journal.event("export", path=str(result.path), form=result.form, gate=result.gate)

    def _take_best(self) -> None:
        best = self.state.best_step
        if best is None or best == self.state.step:
            return
        if self.ranks.from_first(partial(self._best_is_there, best)):
            self.engine.load(load_trained_parameters(self.run.checkpoint(best)), None, 0)
            self.state.step = best
            told = f"the weights of step {best} are exported: their validation loss was the lowest"
        else:
            told = "no step had a lower validation loss than the untrained model: the last weights are exported"
        self.journal.warning(told, code="best_step")

    def _best_is_there(self, best: int) -> bool:
        """False for the untrained model, which has none. Raises RunFault where the checkpoint of a step is gone."""
        path = self.run.checkpoint(best)
        if not path.is_dir() and best != 0:
            raise RunFault(
                f"the checkpoint of step {best}, whose validation loss was the lowest, is not there any more",
                where=str(path),
                remedy=f"bring it back and resume the run; or take other weights: tunesmith export {self.run.root} "
                f"--step {self.state.step}",
            )
        return path.is_dir()

    @property
    def _kept_best(self) -> int | None:
        """The step whose checkpoint stays for the sake of the export."""
        return self.state.best_step if self.plan.recipe.evaluation.early_stopping else None

    def _score(self) -> tuple[float, dict[str, Any]] | None:
        """On the first rank; every rank takes part."""
        assert self.validation is not None
        path = self.run.evaluation(self.state.step) if self.ranks.is_first else None
        facts = None
        if self.plan.recipe.task_facts.is_language_modeling:
            place = self.run.evaluations / "work"
            scores = score_on_ranks(self.engine, self.ranks, self.validation, self.tokenizer, place)
            facts = None if scores is None else token_facts(scores, path)
        elif self._runs_the_model:
            reference = self.reference.get("validation")
            task = self.plan.recipe.task
            facts = score_held_out(task, self.engine.loss_module, self.validation, path, reference=reference)
        self.ranks.wait()
        return None if facts is None else (facts["loss"], facts)

    def _answer(self, when: str) -> None:
        wanted = self.plan.recipe.evaluation.num_answers
        if self.validation is None or not wanted:
            return
        if self._runs_the_model:
            items = task_answers(
                self.plan.recipe.task,
                self.engine.loss_module,
                self.tokenizer,
                self.validation,
                wanted,
                max_new_tokens=self.plan.recipe.evaluation.max_new_tokens,
                agree=self.ranks.broadcast if self.engine.sharded else None,
            )
            self.journal.event("answers", step=self.state.step, when=when, items=items)
        self.ranks.wait()

    @property
    def _runs_the_model(self) -> bool:
        """Whether this rank takes part in answering: the first one, or all where the model is divided."""
        return self.ranks.is_first or self.engine.sharded

    def _told(self) -> set[tuple[str, str | None]]:
        """Kind and `when` of what the run's events tell: earlier attempts may have measured the untrained model."""
        return {(event["kind"], event.get("when")) for event in read_events(self.run.events)}
