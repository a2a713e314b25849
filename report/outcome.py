"""Run status in one word and one sentence, with the cause and the remedy if the run did not complete."""

from dataclasses import dataclass
from typing import Literal

from tunesmith.report.comparison import Comparison
from tunesmith.report.record import Record
from tunesmith.report.wording import change, count, decimal, duration, finite, plural
from tunesmith.rundir.resume_point import resume_point

Tone = Literal["good", "bad", "warn", "busy"]


@dataclass(frozen=True)
class Verdict:
    """tone: color of the word. cause, where, remedy: only if the run did not complete."""

    word: str
    tone: Tone
    sentence: str
    cause: str | None = None
    where: str | None = None
    remedy: str | None = None
    code: str | None = None
    """Of the error (training.learning), for scripts. May be unknown to this version."""


def verdict_of(record: Record, comparison: Comparison | None) -> Verdict:
    outcome = record.outcome
    if outcome in ("done", "early_stopped"):
        return _finished(record, comparison)
    if outcome == "preempted":
        return Verdict(
            "Preempted",
            "warn",
            f"Stopped on request after {_of_total(record, _last_step(record))}; a checkpoint was saved.",
            cause="the process received SIGTERM or SIGUSR2, saved a checkpoint and exited with code 75",
            remedy=f"tunesmith resume {record.run.root}",
        )
    if outcome == "failed":
        return _failed(record)
    if record.is_running:
        return _running(record)
    if record.status is not None and record.status.phase == "queued":
        return Verdict("Queued", "busy", "Waiting for the batch job to start.")
    return _interrupted(record)


def _finished(record: Record, comparison: Comparison | None) -> Verdict:
    word = "Done, stopped early" if record.outcome == "early_stopped" else "Done"
    steps = f"{_of_total(record, _last_step(record))} completed."
    before, after = (finite(record.loss(when)) for when in ("before", "after"))
    if before is None or after is None:
        return Verdict(word, "good", f"{steps} Without validation rows, the result was not evaluated on held-out data.")
    moved = f"Validation loss {'fell' if after < before else 'rose'} from {decimal(before)} to {decimal(after)}"
    share = f" ({change(100 * (after - before) / before, 1)}%)" if before else ""
    if comparison is not None and not comparison.loss.is_clear:
        doubt = "the 95% CI of the difference includes zero, so it may be due to chance."
        return Verdict(word, "warn", f"{moved}{share}; {doubt} {steps}")
    return Verdict(word, "good" if after < before else "warn", f"{moved}{share}. {steps}")


def _failed(record: Record) -> Verdict:
    error = (record.last.errors or record.errors or [None])[-1] if record.last else None
    final = record.end or record.status
    code = final.exit_code if final else None
    return Verdict(
        "Failed",
        "bad",
        f"The run failed after {_of_total(record, _last_step(record))}"
        + (f" with exit code {code}." if code is not None else "."),
        cause=(error and error.what) or "no error was recorded; see the log of the attempt",
        where=(error and error.where) or _log_of(record),
        remedy=(error and error.remedy) or f"fix the cause, then run `tunesmith resume {record.run.root}`",
        code=error and error.code,
    )


def _running(record: Record) -> Verdict:
    status = record.status
    assert status is not None
    left = f", about {duration(status.eta_s)} remaining" if status.eta_s is not None else ""
    return Verdict("Running", "busy", f"Phase {status.phase}: {_of_total(record, status.step)}{left}.")


def _interrupted(record: Record) -> Verdict:
    if record.last is None and record.status is None:
        command = f"tunesmith resume {record.run.root}"
        if record.plan is None:
            command = f"tunesmith train RECIPE --run-dir {record.run.root}"
        return Verdict("Not started", "warn", "The run has not started.", remedy=command)
    step = _last_step(record)
    error = record.last.errors[-1] if record.last and record.last.errors else None
    return Verdict(
        "Interrupted",
        "bad",
        f"The process exited without recording an end, after {_of_total(record, step)}.",
        cause=(error and error.what)
        or "the process was killed (SIGKILL, out of memory, crash or power loss) and could not record a reason",
        where=(error and error.where) or _log_of(record),
        remedy=(error and error.remedy)
        or f"tunesmith resume {record.run.root} (continues from {resume_point(record.run)})",
    )


def _last_step(record: Record) -> int:
    """Last step event: a killed process may have completed more steps than its status records."""
    return record.steps[-1].step if record.steps else (record.status.step if record.status else 0)


def _of_total(record: Record, step: int) -> str:
    total = record.plan.batch.total_steps if record.plan else (record.status.total_steps if record.status else 0)
    return f"{count(step)} of {plural(total, 'step')}" if total else plural(step, "step")


def _log_of(record: Record) -> str | None:
    """The newest log of rank 0, if there is one."""
    logs = sorted(record.run.logs.glob("attempt-*.log")) if record.run.logs.is_dir() else []
    return str(logs[-1]) if logs else None
