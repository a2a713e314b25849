"""Metrics of an evaluation, by task: name, value, format, definition, and whether higher is better."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunesmith.configs.tasks import TASKS, TOKEN_METRICS, Metric, Task
from tunesmith.report.markup import Html, term
from tunesmith.report.wording import decimal, percent, significant
from tunesmith.rundir.events import Scores

FORMS: dict[str, Callable[[Any], str]] = {
    "decimal": decimal,
    "percent": percent,
    "significant": lambda value: significant(value, 4),
}
COMPARED = ("loss", "token_accuracy")
"""Scores that the paired comparison has as well (report/comparison.py)."""
DEFINITIONS = {
    "loss (nats per token)": "Mean negative log-likelihood of the supervised tokens, in nats. Lower is better.",
    "loss (nats)": "Mean cross-entropy of the labels per row, in nats. Lower is better.",
    "loss": "Mean of the training objective over the rows. Lower is better.",
    "perplexity": "exp(loss). Lower is better; 1 is the minimum.",
    "token accuracy": "Fraction of supervised tokens that the model ranks first, given the preceding reference tokens.",
    "macro-F1": "F1 score (harmonic mean of precision and recall), averaged over the labels with equal weight.",
    "accuracy": "Fraction of rows whose label is predicted.",
    "subset accuracy": "Fraction of rows for which all labels are predicted exactly.",
    "label accuracy": "Fraction of correct decisions over all rows and labels.",
    "balanced accuracy": "Recall, averaged over the labels with equal weight.",
    "MCC": "Matthews correlation coefficient: 1 is perfect, 0 is no better than chance.",
    "AUROC": "Area under the receiver operating characteristic curve: 1 is perfect, 0.5 is chance.",
    "AUPRC": "Area under the precision-recall curve (average precision): 1 is perfect.",
    "Brier score": "Mean squared error of the predicted probabilities. Lower is better.",
    "calibration error": "Expected calibration error: mean gap between confidence and accuracy. Lower is better.",
    "reward margin": "Mean implicit reward of the preferred answers minus that of the others. Higher is better.",
    "preference accuracy": "Fraction of pairs whose preferred answer has the higher implicit reward.",
    "reward accuracy": (
        "Fraction of answers whose implicit reward is above the reference point if desirable, below it if undesirable."
    ),
}
"""By the name of the metric (configs/tasks.py), for tooltips and the list of definitions."""


@dataclass(frozen=True)
class Measure:
    """One metric of a task, and how it is shown.

    key: name of the metric in the paired comparison ("loss", "token_accuracy"); empty if it has none.
    """

    name: str
    value: Callable[[Scores], Any]
    form: Callable[[Any], str]
    good: int
    """1: higher is better; -1: lower is better."""
    key: str = ""

    @property
    def definition(self) -> str | None:
        return DEFINITIONS.get(self.name)


def metric_name(measure: Measure) -> Html:
    """The name, capitalized, with the definition as a tooltip."""
    return term(measure.name[:1].upper() + measure.name[1:], measure.definition)


def measures_of(scores: Scores) -> list[Measure]:
    """The metrics of the scores' task, most important first; the loss is always included."""
    task = own_measures(scores)
    metrics = TOKEN_METRICS if task is None else task.metrics
    return [_measure(metric) for metric in metrics if not metric.optional or _has(scores, metric.path)]


def own_measures(scores: Scores) -> Task | None:
    """The task whose specific metrics the scores contain; None if they contain token metrics only."""
    return next((task for task in TASKS.values() if task.section and scores.of_task(task.section) is not None), None)


def in_one_line(scores: Scores) -> str:
    """`validation: macro-F1 0.91, accuracy 92%, loss (nats) 0.31`."""
    return "validation: " + ", ".join(f"{m.name} {m.form(m.value(scores))}" for m in measures_of(scores)[:5])


def _measure(metric: Metric) -> Measure:
    key = metric.path[0] if metric.path[0] in COMPARED else ""
    good = 1 if metric.higher_is_better else -1
    return Measure(metric.name, lambda scores: _value(scores, metric.path), FORMS[metric.form], good, key)


def _value(scores: Scores, path: tuple[str, ...]) -> Any:
    values, (*parents, key) = scores.to_json(), path
    for parent in parents:
        values = values.get(parent, {})
    return values.get(key)


def _has(scores: Scores, path: tuple[str, ...]) -> bool:
    values, (*parents, key) = scores.to_json(), path
    for parent in parents:
        values = values.get(parent, {})
    return key in values
