"""What a tracker receives from the event log: points, each one value of a metric at a step."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.rundir.events import EvaluationEvent, Event, FewShotEvent, RetainedEvent, Scores, StepEvent
from tunesmith.tracking.configuration import flat

STEP_FIELDS = (
    *("loss", "learning_rate", "grad_norm", "tokens_per_s", "token_accuracy", "epoch", "step_s"),
    *("num_tokens", "supervised_tokens", "peak_memory_bytes", "loss_scale"),
    *("router_loss", "expert_load", "router_entropy"),
)
SCORE_FIELDS = ("loss", "perplexity", "token_accuracy", "bits_per_byte")


@dataclass(frozen=True)
class Point:
    """group: train | eval | final | retain | few_shot. name: as in the event log. time: seconds since the epoch."""

    group: str
    name: str
    step: int
    value: float
    time: float

    @property
    def key(self) -> str:
        """Name of the metric in trackers that group metrics by the part before a slash: `train/loss`."""
        return f"{self.group}/{self.name}"


def points_of(event: Event) -> Iterator[Point]:
    """Yield the points of an event; values that are missing or not finite are omitted.

    `eval` are the validation scores before and during training, `final` those after it, of the exported model.
    """
    time = event.time or 0.0
    match event:
        case StepEvent():
            values = {name: getattr(event, name) for name in STEP_FIELDS}
            values["skipped"] = 1 if event.skipped else None
            yield from _points("train", event.step, values, time)
        case EvaluationEvent():
            group = "final" if event.when == "after" else "eval"
            yield from _points(group, event.step, _values(event.scores), time)
        case RetainedEvent():
            yield from _points("retain", event.step, _values(event.scores), time)
        case FewShotEvent():
            yield from _points("few_shot", event.step or 0, _values(event.scores), time)


def new_points(points: Iterable[Point], last_steps: Mapping[str, int]) -> list[Point]:
    """The points after the last step of their metric: a resumed run repeats steps, which are sent once.

    An empty key holds for every metric.
    """
    seen, new = dict(last_steps), []
    for point in points:
        if point.step > max(seen.get(point.key, -1), last_steps.get("", -1)):
            seen[point.key] = point.step
            new.append(point)
    return new


def _points(group: str, step: int, values: Mapping[str, Any], time: float) -> Iterator[Point]:
    for name, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield Point(group, name, step, float(value), time)


def _values(scores: Scores) -> dict[str, Any]:
    """The scores by name, those of a task by the path of their names, without standard errors."""
    values = {name: getattr(scores, name) for name in SCORE_FIELDS}
    values |= {f"datasets/{name}/loss": loss for name, loss in scores.dataset_losses().items()}
    for section, measured in scores.extra.items():
        if isinstance(measured, Mapping) and section != "datasets":
            paths = flat(measured, "/", section)
            values.update((path, value) for path, value in paths if not path.endswith("_error"))
    return values
