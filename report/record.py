"""Contents of a run directory. Reading is tolerant: a missing or damaged file leaves its part empty."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunesmith.configs.plan import Plan, read_plan
from tunesmith.report.wording import finite
from tunesmith.rundir.event_log import read_events
from tunesmith.rundir.events import (
    AnswersEvent,
    CheckpointEvent,
    EndEvent,
    ErrorEvent,
    EvaluationEvent,
    Event,
    ExportEvent,
    FewShotEvent,
    KernelsEvent,
    ModelProofEvent,
    PhaseEvent,
    ResumeEvent,
    RetainedEvent,
    StartEvent,
    StepEvent,
    WarningEvent,
)
from tunesmith.rundir.ledger import LedgerEntry, read_ledger
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import FINAL, Status, is_running, read_status


@dataclass
class Attempt:
    """One attempt of the run's processes, from loading to its end or to the last event of the log."""

    number: int | None = None
    start: StartEvent | None = None
    resume: ResumeEvent | None = None
    end: EndEvent | None = None
    first_time: float = 0.0
    last_time: float = 0.0
    last_step: int | None = None
    """The last step that this attempt completed; None if it completed none."""
    num_lost: int = 0
    """Number and duration of its steps that a later attempt repeated because no checkpoint contained them."""
    seconds_lost: float = 0.0
    errors: list[ErrorEvent] = field(default_factory=list)
    phase: str = ""


@dataclass
class Record:
    """Events of a run.

    steps and evaluations are ordered by step and exclude lost work: what an attempt did after the checkpoint from which
    the next attempt resumed.
    """

    run: RunDir
    attempts: list[Attempt] = field(default_factory=list)
    steps: list[StepEvent] = field(default_factory=list)
    evaluations: list[EvaluationEvent] = field(default_factory=list)
    answers: dict[str, AnswersEvent] = field(default_factory=dict)
    """By "before" and "after"."""
    retained: dict[str, RetainedEvent] = field(default_factory=dict)
    """Scores of general rows, by "before" and "after"."""
    few_shot: FewShotEvent | None = None
    """Scores of the untrained model with training rows in its prompt."""
    checkpoints: list[CheckpointEvent] = field(default_factory=list)
    exports: list[ExportEvent] = field(default_factory=list)
    warnings: list[WarningEvent] = field(default_factory=list)
    errors: list[ErrorEvent] = field(default_factory=list)
    kernels: KernelsEvent | None = None
    model_proof: ModelProofEvent | None = None
    """Of the last attempt."""

    @cached_property
    def plan(self) -> Plan | None:
        try:
            return read_plan(self.run.plan)
        except (OSError, ValidationError, ValueError):
            return None

    @cached_property
    def plan_fault(self) -> str | None:
        """Why the plan is not available; None if it is."""
        if self.plan is not None:
            return None
        return (
            "plan.json is damaged or has an unsupported version" if self.run.plan.is_file() else "plan.json is missing"
        )

    @cached_property
    def name(self) -> str:
        return self.plan.recipe.name if self.plan else self.run.root.resolve().name

    @cached_property
    def recipe_text(self) -> str | None:
        try:
            return self.run.recipe.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    @cached_property
    def status(self) -> Status | None:
        return read_status(self.run.status)

    @cached_property
    def is_running(self) -> bool:
        return self.status is not None and is_running(self.status)

    @cached_property
    def ledger(self) -> dict[int, list[LedgerEntry]]:
        return read_ledger(self.run)

    @property
    def last(self) -> Attempt | None:
        return self.attempts[-1] if self.attempts else None

    @property
    def end(self) -> EndEvent | None:
        """The end event of the last attempt; None while it runs, or if it was killed or crashed."""
        return self.last.end if self.last else None

    @property
    def outcome(self) -> str | None:
        """done, early_stopped, preempted or failed; None while the run is active, or if it was killed or crashed.

        A launcher that fails before a worker starts records this in the status only.
        """
        if self.end is not None:
            return str(self.end.outcome)
        return self.status.phase if self.status and self.status.phase in FINAL else None

    @property
    def is_finished(self) -> bool:
        """Whether training, including early stopping, and all later stages completed."""
        return self.outcome in ("done", "early_stopped")

    @property
    def export_path(self) -> Path | None:
        """Where the newest export is now: exports are in the run directory, which may have been moved since."""
        path = self.exports[-1].path if self.exports else None
        return self.run.root.resolve() / Path(path).name if path else None

    def evaluation(self, when: str) -> EvaluationEvent | None:
        """Return the last evaluation with `when` equal to before, during or after."""
        return next((event for event in reversed(self.evaluations) if event.when == when), None)

    def loss(self, when: str) -> float | None:
        """Return the loss of that evaluation."""
        event = self.evaluation(when)
        return event.scores.loss if event else None

    @property
    def evaluated_last(self) -> EvaluationEvent | None:
        """The evaluation after training or, until it exists, the newest one during training."""
        return self.evaluation("after") or self.evaluation("during")


def read_record(run: RunDir) -> Record:
    """Read the events. Other files are read on first access."""
    record = Record(run)
    for event in read_events(run.events):
        _note_attempt(record, event)
        _note_event(record, event)
    record.steps.sort(key=lambda event: event.step)
    record.evaluations.sort(key=lambda event: (event.step, _WHEN.get(str(event.when), 1)))
    return record


_WHEN = {"before": 0, "during": 1, "after": 2}


def _note_attempt(record: Record, event: Event) -> None:
    """Start a new attempt if this event begins one; update the current one."""
    current = record.last
    loads = isinstance(event, PhaseEvent) and event.phase == "loading"
    if loads and current is not None and current.end is None and current.phase == "evaluating":
        loads = False  # returns from the evaluation before training, in the same attempt
    starts = isinstance(event, StartEvent)
    begins = loads or starts or isinstance(event, ResumeEvent)
    if current is None or loads or (begins and current.end) or (starts and current.start):
        current = Attempt(first_time=event.time or 0.0)
        record.attempts.append(current)
    if current.end is None or isinstance(event, EndEvent):  # the launcher may add warnings of trackers after the end
        current.last_time = event.time or current.last_time
    match event:
        case StartEvent():
            current.start, current.number = event, event.attempt
            _drop_lost(record, event)
        case ResumeEvent():
            current.resume = event
        case EndEvent():
            current.end = event
        case ErrorEvent():
            current.errors.append(event)
        case PhaseEvent():
            current.phase = str(event.phase)
        case StepEvent():
            current.last_step = event.step


def _drop_lost(record: Record, start: StartEvent) -> None:
    """Remove steps and evaluations after the step from which an attempt resumes."""
    step = start.step
    if step is None:
        return
    lost = [event for event in record.steps if event.step > step]
    if len(record.attempts) > 1:
        record.attempts[-2].num_lost = len(lost)
        record.attempts[-2].seconds_lost = sum(finite(event.step_s) or 0.0 for event in lost)
    record.steps = [event for event in record.steps if event.step <= step]
    record.evaluations = [event for event in record.evaluations if event.step <= step]


def _note_event(record: Record, event: Event) -> None:
    match event:
        case StepEvent():
            record.steps.append(event)
        case EvaluationEvent():
            record.evaluations.append(event)
        case AnswersEvent():
            record.answers[str(event.when)] = event
        case RetainedEvent():
            record.retained[str(event.when)] = event
        case FewShotEvent():
            record.few_shot = event
        case CheckpointEvent():
            record.checkpoints.append(event)
        case ExportEvent():
            record.exports.append(event)
        case WarningEvent():
            record.warnings.append(event)
        case ErrorEvent():
            record.errors.append(event)
        case KernelsEvent():
            record.kernels = event
        case ModelProofEvent():
            record.model_proof = event


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if the file is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
