"""Run history: attempts, resumes, discarded checkpoints, warnings and errors."""

from pathlib import Path

from tunesmith.report.markup import Content, Html, details, prose, section, table, tag
from tunesmith.report.record import Attempt, Record
from tunesmith.report.wording import NONE, count, duration, moment, plural, size
from tunesmith.rundir.events import ErrorEvent, WarningEvent

MAX_SHOWN = 100


def history(record: Record) -> Html:
    if not record.attempts:
        return section("history", "Run history", tag("p", "The run has not started.", class_="none"))
    content = [_attempts(record), _set_aside(record), _messages(record), _checkpoints(record)]
    return section("history", "Run history", content)


def _attempts(record: Record) -> Html:
    head = ["Attempt", "Start", "Duration", "First step", "Last step", "Outcome", "Host"]
    body: list[list[Content]] = []
    for index, attempt in enumerate(record.attempts, start=1):
        start = attempt.start
        first = start.step if start else None
        last = attempt.last_step if attempt.last_step is not None else first
        host = NONE
        if start and start.host:
            host = f"{start.host}, {plural(start.world_size or 1, 'process', 'processes')}"
        body.append(
            [
                str(attempt.number or index),
                tag("span", moment(attempt.first_time), class_="nowrap"),
                tag("span", duration(attempt.last_time - attempt.first_time), class_="nowrap"),
                count(first),
                count(last),
                _ending(record, attempt),
                host,
            ]
        )
    return table("Attempts", head, body, numeric=(3, 4))


def _ending(record: Record, attempt: Attempt) -> Content:
    lost = f"; {plural(attempt.num_lost, 'step')} repeated later" if attempt.num_lost else ""
    if attempt.end is not None:
        outcome = str(attempt.end.outcome).replace("_", " ")
        return f"{outcome}, exit code {attempt.end.exit_code}{lost}"
    if attempt is record.last and record.is_running:
        return "running"
    return tag("span", f"killed or crashed, no end recorded{lost}", class_="bad-text")


def _set_aside(record: Record) -> Html | None:
    """Checkpoints that failed verification when an attempt resumed."""
    body: list[list[Content]] = []
    for attempt in record.attempts:
        for item in (attempt.resume and attempt.resume.set_aside) or []:
            name = Path(str(item.get("path"))).name
            body.append([tag("code", name), str(attempt.number or ""), tag("span", item.get("why"), class_="wrap")])
    if not body:
        return None
    head = ["Directory", "Attempt", "Problem"]
    return tag("div", tag("h3", "Discarded checkpoints"), table("Discarded checkpoints", head, body))


def _messages(record: Record) -> Html | None:
    events = sorted([*record.errors, *record.warnings], key=lambda event: event.time or 0.0)
    if not events:
        return tag("p", "No warnings or errors.", class_="note")
    body: list[list[Content]] = [
        [
            tag("span", moment(event.time), class_="nowrap"),
            _kind(event),
            tag("span", _message(event), class_="wrap"),
        ]
        for event in events[:MAX_SHOWN]
    ]
    more = len(events) - MAX_SHOWN
    left = tag("p", f"{plural(more, 'more')} in events.jsonl.", class_="note") if more > 0 else None
    return tag(
        "div", tag("h3", "Warnings and errors"), table("Warnings and errors", ["Time", "Kind", "Message"], body), left
    )


def _kind(event: ErrorEvent | WarningEvent) -> Html:
    return tag("b", event.kind, class_="bad-text" if isinstance(event, ErrorEvent) else "warn-text")


def _message(event: ErrorEvent | WarningEvent) -> list[Content]:
    if isinstance(event, WarningEvent):
        return [prose(str(event.message))]
    message: list[Content] = [prose(str(event.what))]
    for name, text in (("where", event.where), ("what to do", event.remedy)):
        if text:
            message += [tag("br"), tag("span", f"{name}: ", prose(text), class_="note")]
    return message


def _checkpoints(record: Record) -> Html | None:
    if not record.checkpoints:
        return None
    body: list[list[Content]] = []
    for event in record.checkpoints:
        kept = "kept" if record.run.checkpoint(event.step).is_dir() else "deleted by keep_last"
        numbers = [size(event.num_bytes), duration(event.seconds)]
        body.append([f"step {event.step}", moment(event.time), *numbers, str(event.reason), kept])
    head = ["Checkpoint", "Written", "Size", "Duration", "Reason", "Status"]
    return details(f"{plural(len(body), 'checkpoint')} written", table("Checkpoints", head, body, numeric=(2, 3)))
