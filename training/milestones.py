"""What happens at certain steps, called by name: evaluate, save, and the work before and after training."""

import time
from functools import partial
from pathlib import Path
from typing import Any

from tunesmith.configs.plan import Plan
from tunesmith.data.index import TokenIndex
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.evaluation.held_out import score_held_out
from tunesmith.evaluation.task_answers import task_answers
from tunesmith.evaluation.trained import load_trained
from tunesmith.rundir.events import read_events
from tunesmith.rundir.fence import require_newest
from tunesmith.rundir.ledger import Ledger
from tunesmith.rundir.paths import RunDir
from tunesmith.training.checkpoints import load_trained_parameters, retain, save_checkpoint, take_part
from tunesmith.training.engine.protocol import Engine
from tunesmith.training.export import export_run
from tunesmith.training.journal import Journal
from tunesmith.training.ranks import Ranks
from tunesmith.training.reference import Reference
from tunesmith.training.state import RunState


def fingerprints_of(plan: Plan) -> dict[str, str]:
    """What a checkpoint belongs to: the model, the data, and how the trained parameters came about."""
    return {
        "model": plan.model.fingerprint,
        "data": plan.data.fingerprint,
        "method": plan.recipe.method.model_dump_json(),
        "seed": str(plan.recipe.seed),
        "global_batch_size": str(plan.recipe.optimization.global_batch_size),
    }


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
    ):
        self.run, self.plan, self.engine, self.state, self.tokenizer = run, plan, engine, state, tokenizer
        self.ranks, self.journal, self.ledger, self.attempt = ranks, journal, ledger, attempt
        self.reference = reference
        validation = plan.data.validation
        self.validation = TokenIndex.open(Path(validation.index)) if validation else None
        self._last_evaluation: dict[str, Any] | None = None
        self._saved_step = state.step if state.step else None

    def before(self) -> None:
        """Measure the base model; only an attempt that starts from the first step does, and only once."""
        if self.state.step == 0 and not self._is_told("evaluation"):
            self.evaluate("before")
        if self.state.step == 0 and not self._is_told("answers"):
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
        loss, facts = self.ranks.broadcast(self._score() if self._runs_the_model else None)
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
        """Commit a checkpoint of the current step and delete those beyond what the recipe keeps; once a step."""
        if self.state.step == self._saved_step:
            return
        self._saved_step = self.state.step
        self.ledger.sync()
        self.ranks.barrier()
        stands = self.ranks.broadcast(self.run.checkpoint(self.state.step).is_dir())
        if not self.ranks.is_first and not stands:
            take_part(self.engine)
        if self.ranks.is_first:
            started = time.perf_counter()
            path = save_checkpoint(
                self.run, self.state, self.engine, attempt=self.attempt, fingerprints=fingerprints_of(self.plan)
            )
            seconds = time.perf_counter() - started
            num_bytes = sum(file.stat().st_size for file in path.iterdir())
            self.journal.event(
                "checkpoint", step=self.state.step, path=str(path), num_bytes=num_bytes, seconds=seconds, reason=reason
            )
            best = self.state.best_step if self.plan.recipe.evaluation.early_stopping else None
            retain(self.run, self.plan.recipe.checkpoint.keep_last, best)
        self.ranks.barrier()

    def after(self) -> None:
        """Take the best weights where the recipe asks for them, measure them, answer again, export."""
        if self.plan.recipe.evaluation.early_stopping:
            self.evaluate("during")
            self._take_best()
        self.evaluate("after")
        self._answer("after")
        self.journal.phase("exporting")
        self.engine.close()
        if self.ranks.is_first:
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
        self.ranks.barrier()

    def _take_best(self) -> None:
        best = self.state.best_step
        if best is not None and best != self.state.step:
            path = self.run.checkpoint(best)
            if path.is_dir():
                self.engine.load(load_trained_parameters(path), None, 0)
                self.state.step = best
                self.journal.warning(
                    f"the weights of step {best} are exported: their validation loss was the lowest", code="best_step"
                )

    def _score(self) -> tuple[float, dict[str, Any]]:
        assert self.validation is not None
        path = self.run.evaluation(self.state.step) if self.ranks.is_first else None
        facts = score_held_out(
            self.engine.loss_module, self.validation, path, reference=self.reference.get("validation")
        )
        return facts["loss"], facts

    def _answer(self, when: str) -> None:
        wanted = self.plan.recipe.evaluation.num_answers
        if self.validation is None or not wanted or not self._runs_the_model:
            return
        limit = self.plan.recipe.evaluation.max_new_tokens
        items = task_answers(
            self.engine.loss_module,
            self.tokenizer,
            self.validation,
            wanted,
            max_new_tokens=limit,
            agree=self.ranks.broadcast if self.engine.sharded else None,
        )
        self.journal.event("answers", step=self.state.step, when=when, items=items)

    @property
    def _runs_the_model(self) -> bool:
        """Whether this rank takes part in evaluation: the first one, or all where the model is divided."""
        return self.ranks.is_first or self.engine.sharded

    def _is_told(self, kind: str) -> bool:
        """Whether an earlier attempt has already written this event for the untrained model."""
        return any(event.get("when") == "before" for event in read_events(self.run.events, kind))
