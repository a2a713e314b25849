"""The trials of a study for people: outcome, metric, steps and curve of each, read from its run directory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.configs.tasks import Metric
from tunesmith.report.curves import Point
from tunesmith.report.record import read_record
from tunesmith.report.wording import finite
from tunesmith.rundir.events import EvaluationEvent
from tunesmith.rundir.paths import RunDir


@dataclass(frozen=True)
class TrialSummary:
    """One trial. values: by recipe key. outcome: done, pruned, failed or running. value: of the metric after training.
    curve: the metric of the validation rows by step. seconds: of all attempts of its run."""

    number: int
    run: RunDir
    values: Mapping[str, Any]
    outcome: str
    value: float | None
    reason: str | None
    curve: Sequence[Point]
    steps: int
    total_steps: int
    seconds: float


@dataclass(frozen=True)
class StudySummary:
    """A study. best: number of the best finished trial."""

    name: str
    metric: Metric
    trials: Sequence[TrialSummary]
    best: int | None

    @property
    def keys(self) -> list[str]:
        """The recipe keys that vary."""
        return list(dict.fromkeys(key for trial in self.trials for key in trial.values))

    @property
    def short_keys(self) -> dict[str, str]:
        """The same, each with its last part (`learning_rate`), or in full if that is not unique."""
        last = [key.rpartition(".")[2] for key in self.keys]
        return {key: part if last.count(part) == 1 else key for key, part in zip(self.keys, last, strict=True)}

    def trial(self, number: int) -> TrialSummary:
        return self.trials[number - 1]


def value_of(event: EvaluationEvent, metric: Metric) -> float | None:
    """The metric in an evaluation; None if it is missing or not finite."""
    values: Any = event.scores.to_json()
    for key in metric.path:
        values = values.get(key) if isinstance(values, Mapping) else None
    return finite(values)


def summarize(
    number: int,
    run: RunDir,
    metric: Metric,
    *,
    values: Mapping[str, Any],
    outcome: str,
    value: float | None,
    reason: str | None,
) -> TrialSummary:
    """Add what the run directory of a trial contains to what the study recorded."""
    record = read_record(run)
    points = {event.step: value_of(event, metric) for event in record.evaluations}
    return TrialSummary(
        number,
        run,
        values,
        outcome,
        value,
        reason,
        [(step, point) for step, point in points.items() if point is not None],
        record.steps[-1].step if record.steps else 0,
        record.plan.batch.total_steps if record.plan else 0,
        sum(attempt.last_time - attempt.first_time for attempt in record.attempts),
    )


def ranked(study: StudySummary) -> list[TrialSummary]:
    """Finished trials from the best to the worst, then the others by number."""
    sign = -1.0 if study.metric.higher_is_better else 1.0
    return sorted(study.trials, key=lambda trial: (trial.value is None, sign * (trial.value or 0.0), trial.number))
