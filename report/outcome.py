"""How a run stands, in one word and one sentence, with the cause and the remedy where it did not end well."""

from dataclasses import dataclass
from typing import Literal

from tunesmith.report.comparison import Comparison
from tunesmith.report.record import Record
from tunesmith.report.wording import change, count, decimal, duration, finite, plural

Tone = Literal["good", "bad", "warn", "busy"]


@dataclass(frozen=True)
class Verdict:
    """tone colours the word; cause, where and remedy stand only where the run did not end well."""

    word: str
    tone: Tone
    sentence: str
    cause: str | None = None
    where: str | None = None
    remedy: str | None = None


def verdict_of(record: Record, comparison: Comparison | None) -> Verdict:
    outcome = record.outcome
    if outcome in ("done", "early_stopped"):
        return _finished(record, comparison)
    if outcome == "preempted":
        return Verdict(
            "Preempted",
            "warn",
            f"Stopped on request after {_of_total(record, _last_step(record))}; the state was saved.",
            cause="the process was asked to stop (SIGTERM or SIGUSR2), saved its state and left with exit code 75",
            remedy=f"tunesmith resume {record.run.root}",
        )
    if outcome == "failed":
        return _failed(record)
    if record.is_running:
        return _running(record)
    if record.status is not None and record.status.phase == "queued":
        return Verdict("Queued", "busy", "Waits for its batch job to begin.")
    return _broken_off(record)


def _finished(record: Record, comparison: Comparison | None) -> Verdict:
    word = "Done, stopped early" if record.outcome == "early_stopped" else "Done"
    steps = f"{_of_total(record, _last_step(record))} trained."
    before, after = (finite(record.loss(when)) for when in ("before", "after"))
    if before is None or after is None:
        unknown = "There are no validation rows: what was learned was not measured on held-out rows."
        return Verdict(word, "good", f"{steps} {unknown}")
    moved = f"Validation loss {'fell' if after < before else 'rose'} from {decimal(before)} to {decimal(after)}"
    share = f" ({change(100 * (after - before) / before, 1)}%)" if before else ""
    if comparison is not None and not comparison.loss.is_clear:
        doubt = "the interval of the difference includes zero, so this may be chance."
        return Verdict(word, "warn", f"{moved}{share}; {doubt} {steps}")
    return Verdict(word, "good" if after < before else "warn", f"{moved}{share}. {steps}")


def _failed(record: Record) -> Verdict:
    error = (record.last.errors or record.errors or [None])[-1] if record.last else None
    ended = record.end or record.status
    code = ended.exit_code if ended else None
    return Verdict(
        "Failed",
        "bad",
        f"The run ended as a failure after {_of_total(record, _last_step(record))}"
        + (f" with exit code {code}." if code is not None else "."),
        cause=(error and error.what) or "no error was recorded; the log of the attempt says more",
        where=(error and error.where) or _log_of(record),
        remedy=(error and error.remedy) or f"mend the cause, then: tunesmith resume {record.run.root}",
    )


def _running(record: Record) -> Verdict:
    status = record.status
    assert status is not None
    left = f", about {duration(status.eta_s)} to go" if status.eta_s is not None else ""
    return Verdict("Running", "busy", f"Now {status.phase}: {_of_total(record, status.step)}{left}.")


def _broken_off(record: Record) -> Verdict:
    if record.last is None and record.status is None:
        begin = f"tunesmith resume {record.run.root}"
        if record.plan is None:
            begin = f"tunesmith train RECIPE --run-dir {record.run.root}"
        return Verdict("Not started", "warn", "Nothing has run yet.", remedy=begin)
    step = _last_step(record)
    error = record.last.errors[-1] if record.last and record.last.errors else None
    return Verdict(
        "Broken off",
        "bad",
        f"The process ended without a word after {_of_total(record, step)}.",
        cause=(error and error.what)
        or "killed (kill -9, out of memory, a crash or a power cut): it could write no reason",
        where=(error and error.where) or _log_of(record),
        remedy=(error and error.remedy) or f"tunesmith resume {record.run.root}: it goes on from the newest checkpoint",
    )


def _last_step(record: Record) -> int:
    """By the steps themselves: a process that was killed may have made more than its status or its end tell."""
    return record.steps[-1].step if record.steps else (record.status.step if record.status else 0)


def _of_total(record: Record, step: int) -> str:
    total = record.plan.batch.total_steps if record.plan else (record.status.total_steps if record.status else 0)
    return f"{count(step)} of {plural(total, 'step')}" if total else plural(step, "step")


def _log_of(record: Record) -> str | None:
    """The newest log of rank 0, where one lies there."""
    logs = sorted(record.run.logs.glob("attempt-*.log")) if record.run.logs.is_dir() else []
    return str(logs[-1]) if logs else None
