"""The events of a run, one class per kind. A line of events.jsonl is a JSON object: `time`, `kind`, then its fields.

A class declares the fields in the order of the line. Fields may be added to a kind: a reader keeps unknown fields
(`extra`), and fields missing from the log of an earlier version are None.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tunesmith.rundir.json_fields import JsonFields, added_later
from tunesmith.rundir.json_lines import finite_json, parse_line


@dataclass(frozen=True, kw_only=True)
class Event(JsonFields):
    """time: seconds since the epoch; if None, the log sets it on writing."""

    KIND: ClassVar[str] = ""
    time: float | None = None

    @property
    def kind(self) -> str:
        return self.KIND

    def to_json(self) -> dict[str, Any]:
        values = super().to_json()
        stamp = {"time": values.pop("time")} if "time" in values else {}
        return {**stamp, "kind": self.kind, **values}


@dataclass(frozen=True, kw_only=True)
class UnknownEvent(Event):
    """An event of an unknown kind, or of a known kind without its required fields. `extra` holds the line."""

    name: str

    @property
    def kind(self) -> str:
        return self.name

    def to_json(self) -> dict[str, Any]:
        return finite_json(self.extra)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        return cls(name=raw["kind"], extra=raw)


@dataclass(frozen=True, kw_only=True)
class StartEvent(Event):
    """An attempt starts training. resumed_from: path of a checkpoint."""

    KIND = "start"
    attempt: int | None
    step: int | None
    world_size: int | None
    pid: int | None
    host: str | None
    resumed_from: str | None


@dataclass(frozen=True, kw_only=True)
class PhaseEvent(Event):
    """phase: loading | evaluating | training | exporting."""

    KIND = "phase"
    phase: str | None


@dataclass(frozen=True, kw_only=True)
class KernelsEvent(Event):
    """items: {operation, implementation, difference (null: the check raised an error), tolerance, holds}."""

    KIND = "kernels"
    items: list[dict[str, Any]] | None


@dataclass(frozen=True, kw_only=True)
class ModelProofEvent(Event):
    """The loaded model compared with its own forward. packing, loss: as in the plan; null: nothing agreed. items:
    {name, difference (null: not finite), limit, holds, reason, loss, own_loss}, losses in nats per token."""

    KIND = "model_proof"
    packing: bool | None
    loss: str | None
    items: list[dict[str, Any]] | None


@dataclass(frozen=True, kw_only=True)
class StepEvent(Event):
    """skipped: the gradient was not finite, so the update was skipped. loss_scale: after the step, in fp16 only.
    Of mixture-of-experts models: router_loss, load-balancing loss before its coefficient, not part of `loss`;
    expert_load, tokens of an expert divided by the mean of its layer, the largest; router_entropy, mean entropy of the
    routing probabilities in nats."""

    KIND = "step"
    total_steps: int | None
    tokens_per_s: float | None
    step: int
    epoch: float | None
    loss: float | None
    learning_rate: float | None
    grad_norm: float | None
    num_tokens: int | None
    supervised_tokens: int | None
    token_accuracy: float | None
    step_s: float | None
    peak_memory_bytes: int | None
    skipped: bool | None
    loss_scale: float | None = added_later()
    router_loss: float | None = added_later()
    expert_load: float | None = added_later()
    router_entropy: float | None = added_later()


@dataclass(frozen=True, kw_only=True)
class Scores(JsonFields):
    """Results of an evaluation. loss: nats per token. perplexity and bits_per_byte: only for tasks with a token loss.
    The errors are standard errors. Further measurements are in `extra`: those of a task by the name of its section, and
    `datasets`, the loss, its error and the counts of the rows of each data set by its name, if they have names."""

    loss: float | None
    loss_error: float | None
    perplexity: float | None
    perplexity_error: float | None
    token_accuracy: float | None
    token_accuracy_error: float | None
    num_examples: int | None
    num_tokens: int | None
    bits_per_byte: float | None
    bits_per_byte_error: float | None

    def of_task(self, section: str) -> dict[str, Any] | None:
        """Further measurements of the task with that recipe section."""
        scores = self.extra.get(section)
        return scores if isinstance(scores, dict) else None

    def dataset_losses(self) -> dict[str, float]:
        """Loss by name of the data set; empty if the rows have no named data sets."""
        measured = self.of_task("datasets") or {}
        losses = {name: scores.get("loss") for name, scores in measured.items() if isinstance(scores, dict)}
        return {name: float(loss) for name, loss in losses.items() if isinstance(loss, int | float)}


@dataclass(frozen=True, kw_only=True)
class EvaluationEvent(Event):
    """when: before | during | after. best: the lowest loss so far."""

    KIND = "evaluation"
    step: int
    scores: Scores
    seconds: float | None
    best: bool | None
    when: str | None


@dataclass(frozen=True, kw_only=True)
class AnswersEvent(Event):
    """when: before | after. items: {row, prompt, reference, answer, stopped}."""

    KIND = "answers"
    step: int | None
    when: str | None
    items: list[dict[str, Any]] | None


@dataclass(frozen=True, kw_only=True)
class RetainedEvent(Event):
    """Scores of the general rows (evaluation.retain). when: before | after."""

    KIND = "retained"
    step: int
    when: str | None
    scores: Scores


@dataclass(frozen=True, kw_only=True)
class FewShotEvent(Event):
    """Scores of the untrained model with `shots` training rows in its prompt."""

    KIND = "few_shot"
    step: int | None
    shots: int | None
    scores: Scores


@dataclass(frozen=True, kw_only=True)
class CheckpointEvent(Event):
    """seconds: time until the commit. stall_s: time that training was blocked.
    reason: schedule | best | preemption | end."""

    KIND = "checkpoint"
    step: int
    path: str | None
    num_bytes: int | None
    seconds: float | None
    stall_s: float | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class MirrorEvent(Event):
    """A checkpoint was copied to the mirror."""

    KIND = "mirror"
    step: int | None
    url: str | None
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class ResumeEvent(Event):
    """path: the checkpoint; "None" if none verified. set_aside: damaged checkpoints as {path, why}."""

    KIND = "resume"
    step: int | None
    path: str | None
    why: str | None
    set_aside: list[dict[str, Any]] | None


@dataclass(frozen=True, kw_only=True)
class ExportEvent(Event):
    """form: adapter | model. gate: the result of reading it back."""

    KIND = "export"
    path: str | None
    form: str | None
    gate: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class TrackerEvent(Event):
    """A tracker has opened its run. name: kind of the tracker. run_id: ID of its run. url: page of its run."""

    KIND = "tracker"
    name: str | None
    run_id: str | None
    url: str | None


@dataclass(frozen=True, kw_only=True)
class WarningEvent(Event):
    KIND = "warning"
    message: str | None
    code: str | None


@dataclass(frozen=True, kw_only=True)
class ErrorEvent(Event):
    """Fields of the errors in `tunesmith.errors`. code: of a verdict (training.learning), else None."""

    KIND = "error"
    what: str | None
    where: str | None
    remedy: str | None
    code: str | None = added_later()


@dataclass(frozen=True, kw_only=True)
class EndEvent(Event):
    """outcome: done | early_stopped | preempted | failed. seconds: duration of the attempt; None if another process
    wrote the event."""

    KIND = "end"
    outcome: str | None
    step: int | None
    exit_code: int | None
    seconds: float | None


EVENT_TYPES: dict[str, type[Event]] = {
    kind.KIND: kind
    for kind in (
        StartEvent,
        PhaseEvent,
        KernelsEvent,
        ModelProofEvent,
        StepEvent,
        EvaluationEvent,
        AnswersEvent,
        RetainedEvent,
        FewShotEvent,
        CheckpointEvent,
        MirrorEvent,
        ResumeEvent,
        ExportEvent,
        TrackerEvent,
        WarningEvent,
        ErrorEvent,
        EndEvent,
    )
}


def parse_event(line: str) -> Event | None:
    """Parse one line of the log; None if the line is torn, empty or not an event."""
    raw = parse_line(line)
    return None if raw is None else event_of(raw)


def event_of(raw: Mapping[str, Any]) -> Event | None:
    """Return the event of a parsed line; None if it has no kind."""
    kind = raw.get("kind")
    if not isinstance(kind, str):
        return None
    known = EVENT_TYPES.get(kind)
    if known is not None:
        try:
            return known.from_json({key: value for key, value in raw.items() if key != "kind"})
        except ValueError:  # a required field is missing
            pass
    return UnknownEvent.from_json(raw)
