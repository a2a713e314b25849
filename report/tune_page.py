"""The page that compares the trials of a study, as a single self-contained file without scripts."""

import time

from tunesmith.report.curves import Chart, Line, figure
from tunesmith.report.markup import Content, Html, section, table, tag, term
from tunesmith.report.measures import DEFINITIONS, FORMS
from tunesmith.report.page import head
from tunesmith.report.trials import StudySummary, TrialSummary, ranked
from tunesmith.report.wording import NONE, count, decimal, duration, moment, plural
from tunesmith.rundir.atomic import write_text
from tunesmith.rundir.study import StudyDir

MAX_CHARTS = 60
OUTCOME_CLASSES = {"failed": "bad-text", "pruned": "warn-text"}


def write_tune_report(study: StudySummary, directory: StudyDir) -> None:
    """Write tune.html, atomically. Raises OSError if the file cannot be written."""
    write_text(directory.report, render(study))


def render(study: StudySummary) -> str:
    sections = (_trials(study), _curves(study))
    body = tag(
        "body",
        tag("a", "Skip to content", href="#content", class_="skip"),
        tag(
            "div",
            _header(study),
            tag("main", sections, id="content"),
            tag("footer", f"Written {moment(time.time())}. This file works offline and without scripts."),
            class_="page",
        ),
    )
    return f"<!DOCTYPE html>\n{tag('html', head(study.name, 'Hyperparameter search'), body, lang='en')}\n"


def _header(study: StudySummary) -> Html:
    outcomes = [trial.outcome for trial in study.trials]
    counts = ", ".join(f"{outcomes.count(each)} {each}" for each in dict.fromkeys(outcomes))
    word, tone, sentence = "No result", "warn", "No trial has finished yet."
    if study.best is not None:
        best = study.trial(study.best)
        word, tone = f"Trial {best.number}", "good"
        values = ", ".join(f"{key} {_shown(value)}" for key, value in best.values.items())
        sentence = f"{study.metric.name} {_value(study, best)} with {values}."
    return tag(
        "header",
        tag("p", "Tunesmith hyperparameter search", class_="eyebrow"),
        tag("h1", study.name),
        tag("p", f"{plural(len(outcomes), 'trial')}: {counts}", class_="about"),
        tag("div", tag("p", tag("b", word), sentence), class_=f"verdict {tone}"),
    )


def _trials(study: StudySummary) -> Html:
    keys = [term(short, key) for key, short in study.short_keys.items()]
    columns: list[Content] = ["Trial", "Outcome", *keys, study.metric.name, "Best during training", "Steps", "Time"]
    body: list[list[Content]] = []
    for trial in ranked(study):
        values = [_shown(trial.values[key]) if key in trial.values else NONE for key in study.keys]
        steps = f"{count(trial.steps)} of {count(trial.total_steps)}" if trial.total_steps else NONE
        name = str(trial.number)
        if trial.run.report.is_file():
            name = tag("a", name, href=f"{trial.run.name}/{trial.run.report.name}")
        numbers = [_value(study, trial), _lowest(study, trial), steps, duration(trial.seconds)]
        body.append([name, _outcome(study, trial), *values, *numbers])
    numeric = tuple(range(2, len(columns)))
    definition = DEFINITIONS.get(study.metric.name, "")
    lead = f"From the best to the worst by {study.metric.name} of the validation rows after training. {definition}"
    return section("trials", "Trials", table("Trials", columns, body, numeric=numeric), _reasons(study), lead=lead)


def _outcome(study: StudySummary, trial: TrialSummary) -> Html:
    is_best = trial.number == study.best
    look = "good-text" if is_best else OUTCOME_CLASSES.get(trial.outcome)
    return tag("span", "best" if is_best else trial.outcome, class_=look)


def _reasons(study: StudySummary) -> Html | None:
    """Why trials were pruned or failed."""
    body: list[list[Content]] = [
        [str(trial.number), tag("span", trial.reason, class_="wrap")] for trial in study.trials if trial.reason
    ]
    if not body:
        return None
    title = "Pruned and failed trials"
    return tag("div", tag("h3", title), table(title, ["Trial", "Reason"], body))


def _lowest(study: StudySummary, trial: TrialSummary) -> str:
    """The best value of the curve after the first step, with its step."""
    points = [(value, step) for step, value in trial.curve if step > 0]
    if not points:
        return NONE
    value, step = max(points) if study.metric.higher_is_better else min(points)
    return f"{FORMS[study.metric.form](value)}, step {count(step)}"


def _curves(study: StudySummary) -> Html:
    """One chart per trial, with the best trial's curve for comparison."""
    num_steps = max((trial.total_steps for trial in study.trials), default=0)
    best = study.trial(study.best) if study.best is not None else None
    figures = []
    for trial in ranked(study)[:MAX_CHARTS]:
        lines = [Line(f"trial {trial.number}", trial.curve, "validation", dots=True)]
        if best is not None and trial is not best:
            lines.append(Line(f"trial {best.number} (best)", best.curve, "plan"))
        chart = Chart(f"Trial {trial.number}", f"{study.metric.name}, validation rows", lines, decimal, num_steps)
        figures.append(figure(chart) if trial.curve else None)
    drawn = [each for each in figures if each is not None]
    if not drawn:
        return section("curves", "Curves", tag("p", "No evaluations yet.", class_="none"))
    lead = f"{study.metric.name} of the validation rows by optimizer step; for comparison the best trial."
    return section("curves", "Curves", tag("div", drawn, class_="charts"), lead=lead)


def _value(study: StudySummary, trial: TrialSummary) -> str:
    return NONE if trial.value is None else FORMS[study.metric.form](trial.value)


def _shown(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)
