"""Evaluation during a run: the untrained model, the validation rows at the planned steps, and the trained model."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.data.index.token_index import TokenIndex
from tunesmith.evaluation.held_out import score_held_out, token_facts
from tunesmith.evaluation.task_answers import task_answers
from tunesmith.rundir.event_log import read_events
from tunesmith.rundir.events import AnswersEvent, EvaluationEvent, FewShotEvent, RetainedEvent, Scores
from tunesmith.rundir.faults import fault_point
from tunesmith.rundir.fence import require_newest
from tunesmith.rundir.paths import RunDir
from tunesmith.training.auxiliary_evaluation import evaluate_few_shot, evaluate_retained
from tunesmith.training.checkpoint.state import RunState
from tunesmith.training.distributed.stages import Stage
from tunesmith.training.learning import require_learning
from tunesmith.training.rank_context import RankContext
from tunesmith.training.reference import Reference
from tunesmith.training.scoring import score_on_ranks


class Evaluation:
    """Every rank calls each method."""

    def __init__(self, context: RankContext, state: RunState, reference: Reference):
        self._context, self._state, self._reference = context, state, reference
        validation = context.plan.data.validation
        self._validation = TokenIndex.open(Path(validation.index)) if validation else None
        self._last: EvaluationEvent | None = None

    def before(self) -> None:
        """Evaluate the untrained model, once per run: attempts that resume a later step skip it."""
        if self._state.step > 0:
            return
        measured = self._context.ranks.from_first(lambda: measured_before(self._context.run))
        if EvaluationEvent.KIND not in measured:
            self.evaluate("before")
        elif self._state.untrained is None:  # evaluated by an attempt that was killed before its first checkpoint
            self._state.untrained = self._context.ranks.from_first(lambda: untrained_scores(self._context.run))
        if RetainedEvent.KIND not in measured:
            evaluate_retained(self._context, "before", 0)
        if FewShotEvent.KIND not in measured:
            evaluate_few_shot(self._context)
        fault_point("before.answers")
        if AnswersEvent.KIND not in measured:
            self._answer("before")

    def evaluate(self, when: str) -> bool:
        """Score the validation rows; True if no earlier evaluation of this run was better."""
        if self._validation is None:
            return False
        state, journal = self._state, self._context.journal
        if self._last is not None and self._last.step == state.step:
            # These weights were just scored: only the event is written again.
            if when != "during":
                journal.write(replace(self._last, when=when))
            return False
        phase = journal.status.phase
        journal.phase("evaluating")
        started = time.perf_counter()
        with self._context.watchdog.stage(Stage.VALIDATION, state.step):
            loss, facts = self._context.ranks.broadcast(self._score(when))
        stopping = self._context.plan.recipe.evaluation.early_stopping
        best = state.note_validation(loss, stopping.min_delta if stopping else 0.0)
        if stopping and state.evaluations_without_gain >= stopping.patience:
            state.stopped_early = True
        seconds = time.perf_counter() - started
        scores = Scores.from_json(facts)
        self._last = EvaluationEvent(step=state.step, scores=scores, seconds=seconds, best=best, when=when)
        if when == "before":
            state.untrained = learning_scores(scores)
        journal.write(self._last)
        journal.phase(phase)
        return best

    def after(self) -> None:
        """Evaluate the trained model in the same way as the untrained model. RunFault if it has learned nothing."""
        self.evaluate("after")
        scores = learning_scores(self._last.scores) if self._last is not None else None
        self._context.ranks.from_first(lambda: require_learning(self._state, scores))
        evaluate_retained(self._context, "after", self._state.step)
        self._answer("after")

    def _score(self, when: str) -> tuple[float, dict[str, Any]] | None:
        """Loss and scores on the first rank, None on the others; every rank takes part."""
        assert self._validation is not None
        context, engine = self._context, self._context.engine
        path = context.run.evaluation(self._state.step) if context.ranks.is_first else None
        facts, datasets = None, context.plan.data.datasets
        if context.plan.recipe.task_facts.is_language_modeling:
            scores = score_on_ranks(context, self._validation, f"validation-{when}-{self._state.step}")
            if context.ranks.is_first:
                require_newest(context.run, context.attempt)
            facts = None if scores is None else token_facts(scores, path, datasets)
        elif context.generates:
            reference = self._reference.get("validation")
            task = context.plan.recipe.task
            facts = score_held_out(
                task, engine.loss_module, self._validation, path, reference=reference, datasets=datasets
            )
        return None if facts is None else (facts["loss"], facts)

    def _answer(self, when: str) -> None:
        context, num_answers = self._context, self._context.plan.recipe.evaluation.num_answers
        if self._validation is None or not num_answers:
            return
        with context.watchdog.stage(Stage.ANSWERS, self._state.step):
            if context.generates:
                items = task_answers(
                    context.plan.recipe.task,
                    context.engine.loss_module,
                    context.tokenizer,
                    self._validation,
                    num_answers,
                    max_new_tokens=context.plan.recipe.evaluation.max_new_tokens,
                    agree=context.ranks.broadcast if context.engine.sharded else None,
                )
                context.journal.write(AnswersEvent(step=self._state.step, when=when, items=items))
            context.ranks.barrier()


def learning_scores(scores: Scores) -> dict[str, Any] | None:
    """The scores that `training.learning` compares; None if a score is missing."""
    names = ("loss", "loss_error", "token_accuracy", "num_tokens")
    values = {name: getattr(scores, name) for name in names}
    return None if any(values[name] is None for name in names if name != "loss_error") else values


def untrained_scores(run: RunDir) -> dict[str, Any] | None:
    """Scores of the untrained model that an earlier attempt recorded."""
    recorded = [event for event in read_events(run.events, EvaluationEvent) if event.when == "before"]
    return learning_scores(recorded[-1].scores) if recorded else None


def measured_before(run: RunDir) -> set[str]:
    """Kinds of the events in which earlier attempts recorded evaluations of the untrained model."""
    kinds = set()
    for event in read_events(run.events, EvaluationEvent, RetainedEvent, FewShotEvent, AnswersEvent):
        if isinstance(event, FewShotEvent) or event.when == "before":
            kinds.add(event.kind)
    return kinds
