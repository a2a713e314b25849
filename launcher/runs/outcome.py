"""What a run brought, at its end or so far: for the terminal, and as an object for scripts."""

from typing import Any

from rich.console import Console
from rich.table import Table

from tunesmith.configs.tasks import TASKS
from tunesmith.launcher.backends.cluster import ClusterJob
from tunesmith.launcher.runs.cluster_jobs import have_ended, job_lines, jobs_of
from tunesmith.launcher.runs.find import BROKEN_OFF, phase_of
from tunesmith.report.comparison import compare
from tunesmith.report.measures import measures_of
from tunesmith.report.outcome import Verdict, verdict_of
from tunesmith.report.record import Record, read_object, read_record
from tunesmith.report.wording import count, decimal, significant
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import read_status

MEASURED = (
    *("loss", "perplexity", "token_accuracy"),
    *(task.section for task in TASKS.values() if task.section is not None),
    *("num_examples", "num_tokens"),
)
"""Keys of an evaluation's event for scripts; those of other tasks are left out."""
TONES = {"good": "green", "bad": "red", "warn": "yellow", "busy": "cyan"}


def show_outcome(run: RunDir, console: Console) -> None:
    """Before and after, the fate of the rows in a line, where everything lies."""
    record = read_record(run)
    verdict = verdict_of(record, compare(record))
    console.print()
    console.print(f"{verdict.word}. {verdict.sentence}", style=TONES[verdict.tone], markup=False)
    before, after = record.evaluation("before"), record.evaluation("after")
    if before and after:
        console.print(_scores(before, after))
    places = [
        ("rows", _rows_in_words(run)),
        ("export", _export_in_words(record)),
        ("report", str(run.report) if run.report.is_file() else None),
        ("run", str(run.root)),
    ]
    for name, words in places:
        if words:
            console.print(f"{name:>8}: {words}", markup=False, soft_wrap=True)


def show_standing(run: RunDir, console: Console) -> None:
    """How a run stands: one sentence, with cause and remedy where it did not end well."""
    record, jobs = read_record(run), jobs_of(run)
    if record.is_finished:
        show_outcome(run, console)
        _show_jobs(run, jobs, console)
        return
    verdict = verdict_of(record, compare(record))
    if not record.is_running and verdict.word != "Queued" and any(job.is_active for job in jobs):
        verdict = Verdict("Waiting", "busy", f"{len(record.steps)} steps are done; its job goes on by itself.")
    if verdict.word == "Queued" and have_ended(jobs):
        verdict = Verdict("Not started", "bad", "Its job ended before the run began.")
    console.print(f"{verdict.word}. {verdict.sentence}", style=TONES[verdict.tone], markup=False)
    for name, words in (("cause", verdict.cause), ("where", verdict.where), ("what to do", verdict.remedy)):
        if words:
            console.print(f"{name:>12}: {words}", markup=False, soft_wrap=True)
    if record.steps:
        last = record.steps[-1]
        told = (
            f"step {last['step']}, loss {decimal(last.get('loss'))}, {significant(last.get('tokens_per_s'))} tokens/s"
        )
        console.print(f"{'last step':>12}: {told}", markup=False)
    if (evaluation := record.evaluated_last) is not None:
        told = f"loss {decimal(evaluation.get('loss'))} after step {evaluation['step']}"
        console.print(f"{'validation':>12}: {told}", markup=False)
    _show_jobs(run, jobs, console)


def _show_jobs(run: RunDir, jobs: list[ClusterJob], console: Console) -> None:
    for name, words in job_lines(run, jobs):
        console.print(f"{name:>12}: {words}", markup=False, soft_wrap=True)


def as_object(run: RunDir) -> dict[str, Any]:
    """The same for scripts: phase, step, evaluations, paths, and the cause where there is one."""
    record, status, jobs = read_record(run), read_status(run.status), jobs_of(run)
    phase = phase_of(run)
    if phase in ("preempted", "failed", BROKEN_OFF) and any(job.is_active for job in jobs):
        phase = "queued"  # its job begins again by itself
    elif phase == "queued" and have_ended(jobs):
        phase = BROKEN_OFF
    verdict = verdict_of(record, compare(record))
    export = record.exports[-1] if record.exports else {}
    evaluations = {when: record.evaluation(when) for when in ("before", "after")}
    return {
        "run": str(run.root),
        "phase": phase,
        "step": status.step if status else 0,
        "total_steps": status.total_steps if status else 0,
        "eta_s": status.eta_s if status else None,
        "attempt": status.attempt if status else 0,
        "loss": record.steps[-1].get("loss") if record.steps else None,
        "evaluation": {
            when: {key: event[key] for key in MEASURED if key in event} if event else None
            for when, event in evaluations.items()
        },
        "rows": read_object(run.receipts / "summary.json"),
        "export": export.get("path"),
        "report": str(run.report) if run.report.is_file() else None,
        "jobs": [job.as_json() for job in jobs],
        "cause": verdict.cause,
        "where": verdict.where,
        "remedy": verdict.remedy,
    }


def _scores(before: dict[str, Any], after: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column(f"{count(after.get('num_examples'))} held-out rows")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for measure in measures_of(after):
        table.add_row(measure.name, *(measure.form(measure.value(event)) for event in (before, after)))
    return table


def _rows_in_words(run: RunDir) -> str | None:
    summary = read_object(run.receipts / "summary.json")
    fates = [f"{count(number)} {fate}" for fate, number in (summary.get("fates") or {}).items() if number]
    return f"{count(summary.get('rows'))} read: {', '.join(fates)} ({run.receipts})" if fates else None


def _export_in_words(record: Record) -> str | None:
    if not record.exports:
        return None
    export = record.exports[-1]
    difference = significant((export.get("gate") or {}).get("max_logit_difference"), 2)
    return f"{export.get('path')} ({export.get('form')}; read back, its logits differ by {difference} at most)"
