"""Converts a run's event log to API events. The same log always gives the same events with the same keys.

The store adds one event per key, so a restarted supervisor reads the log from the start: no event is lost or
duplicated. A step that is repeated after a crash has the same key, and the same numbers.
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
    ResumeEvent,
    StartEvent,
    StepEvent,
    TrackerEvent,
    WarningEvent,
)
from tunesmith.rundir.paths import RunDir


@dataclass(frozen=True)
class ApiEvent:
    """An event of a job. key: identifies its source; one event per key. created_at: seconds since the epoch. data:
    metrics; empty for other events."""

    key: str
    created_at: float
    message: str
    level: str = "info"
    type: str = "message"
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint at the end of an epoch. metrics: of its step, under the API's names."""

    step: int
    created_at: float
    path: Path
    metrics: dict[str, float]


_TITLES = {"wandb": "Weights and Biases"}


class Relay:
    """Follows the event log of a run. `new` returns the events since the last call."""

    def __init__(self, run: RunDir):
        self.run = run
        self.metrics: dict[int, dict[str, float]] = {}
        """Metrics by step, for checkpoints and the result file."""
        self.num_tokens: dict[int, int] = {}
        self._log = EventFollower(run.events)
        self._pending: StepEvent | None = None
        self._pending_checkpoint: SavedCheckpoint | None = None
        """A step that waits for its evaluation, and its checkpoint if it was saved before the evaluation."""
        self._saved_steps: set[int] = set()
        self._facts: dict[str, Any] | None = None

    def new(self, *, at_end: bool = False) -> list[ApiEvent | SavedCheckpoint]:
        """New events and checkpoints. at_end: the run has ended; do not wait for the evaluation of the last step."""
        items: list[ApiEvent | SavedCheckpoint] = []
        for offset, event in self._log.placed():
            items += self._of(offset, event)
        if at_end:
            items += self._release()
        return items

    @property
    def trained_tokens(self) -> int:
        return sum(self.num_tokens.values())

    def _of(self, offset: int, event: Event) -> list[ApiEvent | SavedCheckpoint]:
        time = event.time or 0.0
        match event:
            case StepEvent():
                return [*self._release(), *self._step(event)]
            case EvaluationEvent():
                return self._evaluation(event)
            case CheckpointEvent():
                return self._checkpoint(event.step, time) if event.reason in ("schedule", "end") else []
            case ResumeEvent():
                return self._resumed(event, time)
            case TrackerEvent():
                return [
                    ApiEvent(
                        f"tracker:{event.name}:{event.run_id}",
                        time,
                        f"{_TITLES.get(str(event.name), event.name)} run: {event.url}",
                    )
                ]
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

    def _start(self, event: StartEvent, time: float) -> list[ApiEvent | SavedCheckpoint]:
        step = event.step or 0
        if self._pending is not None and self._pending.step > step:
            self._saved_steps.discard(self._pending.step)
            self._pending = self._pending_checkpoint = None  # the step is repeated
        items = self._release()
        if (event.attempt or 1) > 1:
            message = f"Training resumed from step {step}"
            items.append(ApiEvent(f"attempt:{event.attempt}", time, message))
        return items

    def _step(self, event: StepEvent) -> list[ApiEvent | SavedCheckpoint]:
        step = event.step
        self.num_tokens[step] = event.num_tokens or 0
        self.metrics[step] = _finite({"train_loss": event.loss, "train_mean_token_accuracy": event.token_accuracy})
        self._pending = event
        return [] if self._is_evaluated(step, event.total_steps or 0) else self._release()

    def _evaluation(self, event: EvaluationEvent) -> list[ApiEvent | SavedCheckpoint]:
        step = event.step
        if step not in self.metrics:
            return []
        loss, accuracy = event.scores.loss, event.scores.token_accuracy
        # Every evaluation uses the whole validation file: the API's two metrics have the same value.
        self.metrics[step] |= _finite(
            {
                "valid_loss": loss,
                "valid_mean_token_accuracy": accuracy,
                "full_valid_loss": loss,
                "full_valid_mean_token_accuracy": accuracy,
            }
        )
        return self._release() if self._pending is not None and self._pending.step == step else []

    def _release(self) -> list[ApiEvent | SavedCheckpoint]:
        if self._pending is None:
            return []
        event, self._pending = self._pending, None
        step, total = event.step, event.total_steps or 0
        metrics = self.metrics[step]
        message = f"Step {step}/{total}: training loss={metrics.get('train_loss', float('nan')):.2f}"
        if "valid_loss" in metrics:
            message += f", full validation loss={metrics['full_valid_loss']:.2f}"
        data = {"step": step, "total_steps": total, **metrics}
        items: list[ApiEvent | SavedCheckpoint] = [
            ApiEvent(f"step:{step}", event.time or 0.0, message, "info", "metrics", data)
        ]
        if self._pending_checkpoint is not None:
            items.append(replace(self._pending_checkpoint, metrics=dict(metrics)))
            self._pending_checkpoint = None
        return items

    def _resumed(self, event: ResumeEvent, time: float) -> list[ApiEvent | SavedCheckpoint]:
        """A worker that is killed between committing a checkpoint and recording it leaves the checkpoint, from which
        the run is then resumed, without an event."""
        step, plan = event.step or 0, self._plan()
        every, total = plan.get("checkpoint_every"), plan.get("total")
        if step == 0 or step in self._saved_steps or not every or (step % every and step != total):
            return []
        return self._checkpoint(step, time)

    def _checkpoint(self, step: int, time: float) -> list[ApiEvent | SavedCheckpoint]:
        self._saved_steps.add(step)
        saved = SavedCheckpoint(step, time, self.run.checkpoint(step), dict(self.metrics.get(step, {})))
        if self._pending is not None and self._pending.step == step:
            self._pending_checkpoint = saved
            return []
        return [saved]

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
                    "checkpoint_every": plan["batch"].get("checkpoint_every_steps"),
                    "total": plan["batch"].get("total_steps"),
                }
            except (OSError, ValueError, KeyError):
                return {}
        return self._facts


def result_csv(metrics: dict[int, dict[str, float]]) -> str:
    """The result file: one line per step; missing values are empty."""
    names = ("train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy")
    lines = ["step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"]
    for step in sorted(metrics):
        cells = [f"{metrics[step][name]:.5f}" if name in metrics[step] else "" for name in names]
        lines.append(",".join([str(step), *cells]))
    return "\n".join(lines) + "\n"


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    """The values that exist and are finite: JSON cannot represent others."""
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
