"""A run's log as the API's events. The same log gives the same events with the same keys, however often it is read.

The store takes an event once for each key, so a supervisor that begins again reads the log from its start: nothing is
lost and nothing is doubled. A step that was trained again after a crash has its old key: its numbers are the same.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith.rundir.event_log import EventFollower
from tunesmith.rundir.events import (
    CheckpointEvent,
    EndEvent,
    ErrorEvent,
    EvaluationEvent,
    Event,
    StartEvent,
    StepEvent,
    WarningEvent,
)
from tunesmith.rundir.paths import RunDir


@dataclass(frozen=True)
class ApiEvent:
    """key: of its source, one event each. created_at: seconds since the epoch. data: of metrics; empty otherwise."""

    key: str
    created_at: float
    message: str
    level: str = "info"
    type: str = "message"
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckpointMade:
    """A checkpoint at the end of an epoch. metrics: of its step, by the API's names."""

    step: int
    created_at: float
    path: Path
    metrics: dict[str, float]


class Relay:
    """Follows one run's log. `new` gives what came since the last call."""

    def __init__(self, run: RunDir):
        self.run = run
        self.metrics: dict[int, dict[str, float]] = {}
        """By step: what was measured at it, for the checkpoints and the result file."""
        self.num_tokens: dict[int, int] = {}
        self._log = EventFollower(run.events)
        self._held: StepEvent | None = None
        self._held_checkpoint: CheckpointMade | None = None
        """A step that waits for its evaluation, and the checkpoint that was made of it meanwhile."""
        self._facts: dict[str, Any] | None = None

    def new(self, *, at_end: bool = False) -> list[ApiEvent | CheckpointMade]:
        """at_end: the run has ended; a step that waited for its evaluation is given as it is."""
        found: list[ApiEvent | CheckpointMade] = []
        for offset, event in self._log.placed():
            found += self._of(offset, event)
        if at_end:
            found += self._release()
        return found

    @property
    def trained_tokens(self) -> int:
        return sum(self.num_tokens.values())

    def _of(self, offset: int, event: Event) -> list[ApiEvent | CheckpointMade]:
        time = event.time or 0.0
        match event:
            case StepEvent():
                return [*self._release(), *self._step(event)]
            case EvaluationEvent():
                return self._evaluation(event)
            case CheckpointEvent():
                return self._checkpoint(event, time)
            case WarningEvent():
                return [ApiEvent(f"line:{offset}", time, str(event.message), "warn")]
            case ErrorEvent():
                message = f"{event.what}" + (f" ({event.where})" if event.where else "")
                return [*self._release(), ApiEvent(f"line:{offset}", time, message, "error")]
            case StartEvent():
                return self._start(event, time)
            case EndEvent():
                return self._release()
        return []

    def _start(self, event: StartEvent, time: float) -> list[ApiEvent | CheckpointMade]:
        step = event.step or 0
        if self._held is not None and self._held.step > step:
            self._held = self._held_checkpoint = None  # it is trained again
        given = self._release()
        if (event.attempt or 1) > 1:
            message = f"Training goes on from step {step}"
            given.append(ApiEvent(f"attempt:{event.attempt}", time, message))
        return given

    def _step(self, event: StepEvent) -> list[ApiEvent | CheckpointMade]:
        step = event.step
        self.num_tokens[step] = event.num_tokens or 0
        self.metrics[step] = _finite({"train_loss": event.loss, "train_mean_token_accuracy": event.token_accuracy})
        self._held = event
        return [] if self._is_evaluated(step, event.total_steps or 0) else self._release()

    def _evaluation(self, event: EvaluationEvent) -> list[ApiEvent | CheckpointMade]:
        step = event.step
        if step not in self.metrics:
            return []
        loss, accuracy = event.scores.loss, event.scores.token_accuracy
        # The whole validation file is measured each time: the two names of the API hold the same number.
        self.metrics[step] |= _finite(
            {
                "valid_loss": loss,
                "valid_mean_token_accuracy": accuracy,
                "full_valid_loss": loss,
                "full_valid_mean_token_accuracy": accuracy,
            }
        )
        return self._release() if self._held is not None and self._held.step == step else []

    def _release(self) -> list[ApiEvent | CheckpointMade]:
        if self._held is None:
            return []
        event, self._held = self._held, None
        step, total = event.step, event.total_steps or 0
        metrics = self.metrics[step]
        message = f"Step {step}/{total}: training loss={metrics.get('train_loss', float('nan')):.2f}"
        if "valid_loss" in metrics:
            message += f", full validation loss={metrics['full_valid_loss']:.2f}"
        data = {"step": step, "total_steps": total, **metrics}
        given: list[ApiEvent | CheckpointMade] = [
            ApiEvent(f"step:{step}", event.time or 0.0, message, "info", "metrics", data)
        ]
        if self._held_checkpoint is not None:
            given.append(replace(self._held_checkpoint, metrics=dict(metrics)))
            self._held_checkpoint = None
        return given

    def _checkpoint(self, event: CheckpointEvent, time: float) -> list[ApiEvent | CheckpointMade]:
        step = event.step
        if event.reason not in ("schedule", "end"):
            return []
        made = CheckpointMade(step, time, self.run.checkpoint(step), dict(self.metrics.get(step, {})))
        if self._held is not None and self._held.step == step:
            self._held_checkpoint = made
            return []
        return [made]

    def _is_evaluated(self, step: int, total: int) -> bool:
        facts = self._plan()
        every = facts.get("every")
        return bool(facts.get("validation")) and (step == total or (every is not None and step % every == 0))

    def _plan(self) -> dict[str, Any]:
        if self._facts is None:
            try:
                plan = json.loads(self.run.plan.read_text(encoding="utf-8"))
                self._facts = {
                    "every": plan["batch"]["evaluation_every_steps"],
                    "validation": plan["data"]["validation"] is not None,
                }
            except (OSError, ValueError, KeyError):
                return {}
        return self._facts


def result_csv(metrics: dict[int, dict[str, float]]) -> str:
    """The result file: a line a step, an empty cell where nothing was measured."""
    names = ("train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy")
    lines = ["step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"]
    for step in sorted(metrics):
        cells = [f"{metrics[step][name]:.5f}" if name in metrics[step] else "" for name in names]
        lines.append(",".join([str(step), *cells]))
    return "\n".join(lines) + "\n"


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    """Those that were measured and are finite: JSON has no word for others."""
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
