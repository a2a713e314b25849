"""What an evaluation measured, in the words of its task: names, values, and whether more is better."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunesmith.configs.tasks import TASKS, TOKEN_METRICS, Metric, Task
from tunesmith.report.wording import decimal, percent, significant

Event = dict[str, Any]
FORMS: dict[str, Callable[[Any], str]] = {
    "decimal": decimal,
    "percent": percent,
    "significant": lambda value: significant(value, 4),
}
COMPARED = ("loss", "token_accuracy")
"""Keys of an event that the paired comparison has as well (report/comparison.py)."""


@dataclass(frozen=True)
class Measure:
    """key: of the paired comparison, where the rows' own scores give one ("loss", "token_accuracy"), else empty."""

    name: str
    value: Callable[[Event], Any]
    form: Callable[[Any], str]
    good: int
    """1: more is better; -1: less is."""
    key: str = ""


def measures_of(event: Event) -> list[Measure]:
    """The measures of an event's task, those that matter most first; the loss is always one of them."""
    task = own_measures(event)
    metrics = TOKEN_METRICS if task is None else task.metrics
    return [_measure(metric) for metric in metrics if not metric.optional or _has(event, metric.path)]


def own_measures(event: Event) -> Task | None:
    """The task whose own numbers the event has; None where it has those of tokens alone."""
    return next((task for task in TASKS.values() if task.section in event), None)


def in_one_line(event: Event) -> str:
    """`validation: macro-F1 0.91, accuracy 92 %, loss (nats) 0.31`."""
    return "validation: " + ", ".join(f"{m.name} {m.form(m.value(event))}" for m in measures_of(event)[:5])


def _measure(metric: Metric) -> Measure:
    key = metric.path[0] if metric.path[0] in COMPARED else ""
    good = 1 if metric.higher_is_better else -1
    return Measure(metric.name, lambda event: _value(event, metric.path), FORMS[metric.form], good, key)


def _value(event: Event, path: tuple[str, ...]) -> Any:
    *parts, key = path
    for part in parts:
        event = event.get(part, {})
    return event.get(key)


def _has(event: Event, path: tuple[str, ...]) -> bool:
    *parts, key = path
    for part in parts:
        event = event.get(part, {})
    return key in event
