"""What a run directory tells, read once and forgivingly: a file that is missing or damaged leaves its part empty."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunesmith.configs.plan import Plan, read_plan
from tunesmith.report.wording import finite
from tunesmith.rundir.events import read_events
from tunesmith.rundir.ledger import LedgerEntry, read_ledger
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import FINAL, Status, is_running, read_status

Event = dict[str, Any]


@dataclass
class Attempt:
    """One life of the run's processes: from loading to its end, or to where the log breaks off."""

    number: int | None = None
    start: Event | None = None
    resume: Event | None = None
    end: Event | None = None
    first_time: float = 0.0
    last_time: float = 0.0
    last_step: int | None = None
    """The last step that this attempt made; None: none."""
    num_lost: int = 0
    """Of its steps those that a later attempt made again, since no checkpoint held them; and their time."""
    seconds_lost: float = 0.0
    errors: list[Event] = field(default_factory=list)
    phase: str = ""


@dataclass
class Record:
    """steps and evaluations are those that count: what an attempt made beyond the checkpoint that the next one went on
    from is left out, as its weights were lost. They are ordered by step."""

    run: RunDir
    attempts: list[Attempt] = field(default_factory=list)
    steps: list[Event] = field(default_factory=list)
    evaluations: list[Event] = field(default_factory=list)
    answers: dict[str, Event] = field(default_factory=dict)
    retained: dict[str, Event] = field(default_factory=dict)
    """Scores of general rows, by "before" and "after"."""
    few_shot: Event | None = None
    """Scores of the untrained model with training rows in its prompt."""
    checkpoints: list[Event] = field(default_factory=list)
    exports: list[Event] = field(default_factory=list)
    warnings: list[Event] = field(default_factory=list)
    errors: list[Event] = field(default_factory=list)
    story: list[Event] = field(default_factory=list)
    """Every event but the steps, as written."""

    @cached_property
    def plan(self) -> Plan | None:
        try:
            return read_plan(self.run.plan)
        except (OSError, ValidationError, ValueError):
            return None

    @cached_property
    def plan_fault(self) -> str | None:
        """Why there is no plan."""
        if self.plan is not None:
            return None
        return "plan.json is damaged or of another version" if self.run.plan.is_file() else "plan.json is missing"

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
    def end(self) -> Event | None:
        """The end event of the last attempt; None while it runs, or where it died without a word."""
        return self.last.end if self.last else None

    @property
    def outcome(self) -> str | None:
        """done, early_stopped, preempted or failed; None while it runs, or where it died without a word.

        A launcher that fails before there is a worker says so in the status alone.
        """
        if self.end is not None:
            return str(self.end.get("outcome"))
        return self.status.phase if self.status and self.status.phase in FINAL else None

    @property
    def is_finished(self) -> bool:
        """Whether training came to its planned end or to an early one, and what follows it was done."""
        return self.outcome in ("done", "early_stopped")

    def evaluation(self, when: str) -> Event | None:
        """The last evaluation of that name: before, during or after."""
        return next((event for event in reversed(self.evaluations) if event.get("when") == when), None)

    @property
    def evaluated_last(self) -> Event | None:
        """The evaluation of the trained model: the one after training, or while there is none the newest during it."""
        return self.evaluation("after") or self.evaluation("during")


def read_record(run: RunDir) -> Record:
    """Everything that the events tell. Other files are read when they are asked for."""
    record = Record(run)
    for event in read_events(run.events):
        _note_attempt(record, event)
        _note_event(record, event)
    record.steps.sort(key=lambda event: event["step"])
    record.evaluations.sort(key=lambda event: (event["step"], _WHEN.get(str(event.get("when")), 1)))
    return record


_WHEN = {"before": 0, "during": 1, "after": 2}


def _note_attempt(record: Record, event: Event) -> None:
    """Open a new attempt where this event begins one; bring the current one up to date."""
    kind, current = event["kind"], record.last
    loads = kind == "phase" and event.get("phase") == "loading"
    if loads and current is not None and current.end is None and current.phase == "evaluating":
        loads = False  # back from measuring the model before training, in the same attempt
    begins = loads or kind in ("resume", "start")
    if current is None or loads or (begins and current.end) or (kind == "start" and current.start):
        current = Attempt(first_time=_time(event))
        record.attempts.append(current)
    assert current is not None
    current.last_time = _time(event) or current.last_time
    if kind == "start":
        current.start, current.number = event, event.get("attempt")
        _forget_lost(record, event)
    elif kind == "resume":
        current.resume = event
    elif kind == "end":
        current.end = event
    elif kind == "error":
        current.errors.append(event)
    elif kind == "phase":
        current.phase = str(event.get("phase"))
    elif kind == "step" and isinstance(event.get("step"), int):
        current.last_step = event["step"]


def _forget_lost(record: Record, start: Event) -> None:
    """Leave out what was made after the step that an attempt goes on from."""
    step = start.get("step")
    if not isinstance(step, int):
        return
    lost = [event for event in record.steps if event["step"] > step]
    if len(record.attempts) > 1:
        record.attempts[-2].num_lost = len(lost)
        record.attempts[-2].seconds_lost = sum(finite(event.get("step_s")) or 0.0 for event in lost)
    record.steps = [event for event in record.steps if event["step"] <= step]
    record.evaluations = [event for event in record.evaluations if event["step"] <= step]


def _note_event(record: Record, event: Event) -> None:
    kind = event["kind"]
    if kind == "step":
        if isinstance(event.get("step"), int):
            record.steps.append(event)
        return
    record.story.append(event)
    if kind == "evaluation" and isinstance(event.get("step"), int):
        record.evaluations.append(event)
    elif kind == "answers":
        record.answers[str(event.get("when"))] = event
    elif kind == "retained" and isinstance(event.get("step"), int):
        record.retained[str(event.get("when"))] = event
    elif kind == "few_shot":
        record.few_shot = event
    else:
        listed = {"checkpoint": record.checkpoints, "export": record.exports}
        listed |= {"warning": record.warnings, "error": record.errors}
        listed.get(kind, []).append(event)


def _time(event: Event) -> float:
    value = event.get("time")
    return float(value) if isinstance(value, (int, float)) else 0.0


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file in order; damaged lines are skipped, a missing file is empty."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    value = json.loads(line)
                except ValueError:
                    continue
                if isinstance(value, dict):
                    yield value
    except OSError:
        return


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
