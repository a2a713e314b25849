"""Shows the results of a run, final or so far: on the terminal, and as a JSON object for scripts."""

from typing import Any

from rich.table import Table

from tunesmith.configs.tasks import TASKS
from tunesmith.launcher.backends.cluster import ClusterJob
from tunesmith.launcher.runs.cluster_jobs import have_ended, job_lines, jobs_of
from tunesmith.launcher.runs.find import BROKEN_OFF, phase_of
from tunesmith.launcher.terminal import TextConsole
from tunesmith.report.comparison import compare
from tunesmith.report.gate import gate_measure
from tunesmith.report.measures import measures_of
from tunesmith.report.outcome import Verdict, verdict_of
from tunesmith.report.record import Record, read_object, read_record
from tunesmith.report.wording import count, decimal, significant
from tunesmith.rundir.events import EvaluationEvent, Scores
from tunesmith.rundir.paths import RunDir
from tunesmith.rundir.status import read_status

MEASURED = (
    *("loss", "perplexity", "token_accuracy"),
    *(task.section for task in TASKS.values() if task.section is not None),
    *("num_examples", "num_tokens"),
)
"""Keys of an evaluation event for scripts; those of other tasks are omitted."""
TONES = {"good": "green", "bad": "red", "warn": "yellow", "busy": "cyan"}


def show_outcome(run: RunDir, console: TextConsole) -> None:
    """Show the scores before and after training, the row outcomes, and the paths of the results."""
    record = read_record(run)
    verdict = verdict_of(record, compare(record))
    console.print()
    console.print(f"{verdict.word}. {verdict.sentence}", style=TONES[verdict.tone])
    before, after = record.evaluation("before"), record.evaluation("after")
    if before and after:
        console.print(_scores(before.scores, after.scores))
    places = [
        ("rows", _row_outcomes(run)),
        ("export", _export_line(record)),
        ("report", str(run.report) if run.report.is_file() else None),
        ("run", str(run.root)),
    ]
    for name, text in places:
        if text:
            console.print(f"{name:>8}: {text}", soft_wrap=True)


def show_status(run: RunDir, console: TextConsole) -> None:
    """Show the status of a run: one sentence, and for a failed run cause and remedy."""
    record, jobs = read_record(run), jobs_of(run)
    if record.is_finished:
        show_outcome(run, console)
        _show_jobs(run, jobs, console)
        return
    verdict = verdict_of(record, compare(record))
    if not record.is_running and verdict.word != "Queued" and any(job.is_active for job in jobs):
        verdict = Verdict("Waiting", "busy", f"{len(record.steps)} steps are done; its job resumes automatically.")
    if verdict.word == "Queued" and have_ended(jobs):
        verdict = Verdict("Not started", "bad", "Its job ended before the run started.")
    console.print(f"{verdict.word}. {verdict.sentence}", style=TONES[verdict.tone])
    for name, text in (("cause", verdict.cause), ("where", verdict.where), ("what to do", verdict.remedy)):
        if text:
            console.print(f"{name:>12}: {text}", soft_wrap=True)
    if record.steps:
        last = record.steps[-1]
        numbers = f"step {last.step}, loss {decimal(last.loss)}, {significant(last.tokens_per_s)} tokens/s"
        console.print(f"{'last step':>12}: {numbers}")
    if (evaluation := record.evaluated_last) is not None:
        loss = f"loss {decimal(evaluation.scores.loss)} after step {evaluation.step}"
        console.print(f"{'validation':>12}: {loss}")
    _show_jobs(run, jobs, console)


def _show_jobs(run: RunDir, jobs: list[ClusterJob], console: TextConsole) -> None:
    for name, text in job_lines(run, jobs):
        console.print(f"{name:>12}: {text}", soft_wrap=True)


def as_object(run: RunDir) -> dict[str, Any]:
    """The same for scripts: phase, step, evaluations, paths, and the cause of a failure."""
    record, status, jobs = read_record(run), read_status(run.status), jobs_of(run)
    phase = phase_of(run)
    if phase in ("preempted", "failed", BROKEN_OFF) and any(job.is_active for job in jobs):
        phase = "queued"  # its job restarts automatically
    elif phase == "queued" and have_ended(jobs):
        phase = BROKEN_OFF
    verdict = verdict_of(record, compare(record))
    return {
        "run": str(run.root),
        "phase": phase,
        "step": status.step if status else 0,
        "total_steps": status.total_steps if status else 0,
        "eta_s": status.eta_s if status else None,
        "attempt": status.attempt if status else 0,
        "loss": record.steps[-1].to_json().get("loss") if record.steps else None,
        "evaluation": {when: _measured(record.evaluation(when)) for when in ("before", "after")},
        "rows": read_object(run.receipts / "summary.json"),
        "export": str(record.export_path) if record.export_path else None,
        "report": str(run.report) if run.report.is_file() else None,
        "jobs": [job.as_json() for job in jobs],
        "code": verdict.code,
        "cause": verdict.cause,
        "where": verdict.where,
        "remedy": verdict.remedy,
    }


def _measured(event: EvaluationEvent | None) -> dict[str, Any] | None:
    if event is None:
        return None
    values = event.scores.to_json()
    return {key: values[key] for key in MEASURED if key in values}


def _scores(before: Scores, after: Scores) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column(f"{count(after.num_examples)} held-out rows")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for measure in measures_of(after):
        table.add_row(measure.name, *(measure.form(measure.value(scores)) for scores in (before, after)))
    return table


def _row_outcomes(run: RunDir) -> str | None:
    summary = read_object(run.receipts / "summary.json")
    outcomes = [f"{count(number)} {outcome}" for outcome, number in (summary.get("fates") or {}).items() if number]
    return f"{count(summary.get('rows'))} read: {', '.join(outcomes)} ({run.receipts})" if outcomes else None


def _export_line(record: Record) -> str | None:
    if not record.exports:
        return None
    export = record.exports[-1]
    return f"{record.export_path} ({export.form}; read back, {gate_measure(export.gate)})"
