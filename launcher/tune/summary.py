"""What a study writes for people: the table on the terminal, tune.html and best.yaml."""

import shlex
from typing import Any

from rich.table import Table

from tunesmith.configs.search_space import as_text
from tunesmith.launcher.terminal import TextConsole
from tunesmith.launcher.tune.best import best_recipe
from tunesmith.launcher.tune.search import Search
from tunesmith.launcher.tune.study import DONE, Study
from tunesmith.report.measures import FORMS
from tunesmith.report.trials import StudySummary, TrialSummary, ranked, summarize
from tunesmith.report.tune_page import write_tune_report
from tunesmith.report.wording import NONE, count, duration
from tunesmith.rundir.atomic import write_text

STYLES = {"pruned": "yellow", "failed": "red", "running": "cyan"}


def summary_of(search: Search, study: Study) -> StudySummary:
    """Read what the study recorded and the run directories of its trials."""
    metric = search.metric
    trials = [
        summarize(
            trial.number,
            search.directory.trial(trial.number),
            metric,
            values=trial.values,
            outcome=trial.outcome,
            value=trial.value,
            reason=trial.reason,
        )
        for trial in study.trials()
    ]
    summary = StudySummary(search.directory.name, metric, trials, None)
    best = next((trial.number for trial in ranked(summary) if trial.outcome == DONE), None)
    return StudySummary(search.directory.name, metric, trials, best)


def write_results(search: Search, study: Study) -> StudySummary:
    """Write tune.html and, once a trial has finished, best.yaml."""
    summary = summary_of(search, study)
    write_tune_report(summary, search.directory)
    if summary.best is not None:
        best = summary.trial(summary.best)
        heading = f"Trial {best.number} of {summary.name}: {summary.metric.name} {shown_value(summary, best)}"
        write_text(search.directory.best_recipe, best_recipe(search.request, best.values, heading))
    return summary


def show_results(search: Search, summary: StudySummary, console: TextConsole) -> None:
    """Print the trials from the best to the worst, and the commands that continue with the best."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("trial", *summary.short_keys.values(), summary.metric.name, "steps", "time"):
        table.add_column(name, justify="right")
    table.add_column("outcome", overflow="fold")
    for trial in ranked(summary):
        outcome = "best" if trial.number == summary.best else trial.reason or trial.outcome
        values = [as_text(trial.values[key]) if key in trial.values else NONE for key in summary.keys]
        numbers = [shown_value(summary, trial), steps_of(trial), duration(trial.seconds)]
        style = "bold green" if trial.number == summary.best else STYLES.get(trial.outcome)
        table.add_row(str(trial.number), *values, *numbers, outcome, style=style)
    console.print()
    console.print(table)
    for name, text in _places(search, summary):
        console.print(f"{name:>13}: {text}", soft_wrap=True)


def as_object(search: Search, summary: StudySummary) -> dict[str, Any]:
    """The same for scripts."""
    return {
        "study": str(search.directory.root),
        "objective": search.tune_file.tune.objective,
        "best": summary.best,
        "best_recipe": str(search.directory.best_recipe) if summary.best is not None else None,
        "report": str(search.directory.report),
        "trials": [
            {
                "number": trial.number,
                "run": str(trial.run.root),
                "values": dict(trial.values),
                "outcome": trial.outcome,
                "value": trial.value,
                "reason": trial.reason,
                "step": trial.steps,
                "total_steps": trial.total_steps,
                "curve": [list(point) for point in trial.curve],
            }
            for trial in summary.trials
        ],
    }


def shown_value(summary: StudySummary, trial: TrialSummary) -> str:
    """The metric after training; of a trial that has not finished, none."""
    return NONE if trial.value is None else FORMS[summary.metric.form](trial.value)


def steps_of(trial: TrialSummary) -> str:
    return f"{count(trial.steps)} of {count(trial.total_steps)}" if trial.total_steps else NONE


def _places(search: Search, summary: StudySummary) -> list[tuple[str, str]]:
    places = [("report", str(search.directory.report))]
    if summary.best is None:
        return places
    best = summary.trial(summary.best)
    if search.tune_file.tune.steps_per_trial is None:
        places.append(("best export", str(best.run.export)))
    file = shlex.quote(str(search.directory.best_recipe))
    where = f" --on {search.launch.backend}" if search.cluster.addressed or search.cluster.is_batch else ""
    places += [("best recipe", file), ("train it", f"tunesmith train {file}{where}")]
    return places
