"""Event logs as they are on disk: JSON objects, read without the classes of the events and written from keywords."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.rundir.events import Event, UnknownEvent, event_of


def event_lines(path: Path, *kinds: str) -> Iterator[dict[str, Any]]:
    """The objects of a log, of the given kinds only where any are given; a torn line is skipped."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if not kinds or event["kind"] in kinds:
            yield event


def an_event(kind: str, **fields: Any) -> Event:
    """An event with some of its fields, as a log of an earlier version may have it."""
    event = event_of({"kind": kind, **fields})
    assert event is not None
    assert not isinstance(event, UnknownEvent), f"{kind} lacks a field that it needs"
    return event
