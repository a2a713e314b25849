"""What an evaluation measured, in the words of its task: names, values, and whether more is better."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunesmith.configs.tasks import TASKS, TOKEN_METRICS, Metric, Task
from tunesmith.report.wording import decimal, percent, significant
from tunesmith.rundir.events import Scores

FORMS: dict[str, Callable[[Any], str]] = {
    "decimal": decimal,
    "percent": percent,
    "significant": lambda value: significant(value, 4),
}
COMPARED = ("loss", "token_accuracy")
"""Scores that the paired comparison has as well (report/comparison.py)."""


@dataclass(frozen=True)
class Measure:
    """key: of the paired comparison, where the rows' own scores give one ("loss", "token_accuracy"), else empty."""

    name: str
    value: Callable[[Scores], Any]
    form: Callable[[Any], str]
    good: int
    """1: more is better; -1: less is."""
    key: str = ""


def measures_of(scores: Scores) -> list[Measure]:
    """The measures of the task of the scores, those that matter most first; the loss is always one of them."""
    task = own_measures(scores)
    metrics = TOKEN_METRICS if task is None else task.metrics
    return [_measure(metric) for metric in metrics if not metric.optional or _has(scores, metric.path)]


def own_measures(scores: Scores) -> Task | None:
    """The task whose own numbers are among the scores; None where there are those of tokens alone."""
    return next((task for task in TASKS.values() if task.section and scores.of_task(task.section) is not None), None)


def in_one_line(scores: Scores) -> str:
    """`validation: macro-F1 0.91, accuracy 92%, loss (nats) 0.31`."""
    return "validation: " + ", ".join(f"{m.name} {m.form(m.value(scores))}" for m in measures_of(scores)[:5])


def _measure(metric: Metric) -> Measure:
    key = metric.path[0] if metric.path[0] in COMPARED else ""
    good = 1 if metric.higher_is_better else -1
    return Measure(metric.name, lambda scores: _value(scores, metric.path), FORMS[metric.form], good, key)


def _value(scores: Scores, path: tuple[str, ...]) -> Any:
    found, (*parts, key) = scores.to_json(), path
    for part in parts:
        found = found.get(part, {})
    return found.get(key)


def _has(scores: Scores, path: tuple[str, ...]) -> bool:
    found, (*parts, key) = scores.to_json(), path
    for part in parts:
        found = found.get(part, {})
    return key in found
