"""The event log of a run, events.jsonl: append-only, one event per line, can be read while it is written."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, overload

from tunesmith.rundir.events import EVENT_TYPES, Event, event_of, parse_event
from tunesmith.rundir.json_lines import LineFile, read_lines

E = TypeVar("E", bound=Event)


class EventLog:
    """Appends events to a file."""

    def __init__(self, path: Path):
        self.path = path
        self._lines = LineFile(path)

    def write(self, event: E) -> E:
        """Append one event and return it as written, with its time."""
        if event.time is None:
            event = replace(event, time=round(time.time(), 3), absent=event.absent - {"time"})
        self._lines.append(event.to_json())
        return event

    def sync(self) -> None:
        self._lines.sync()

    def close(self) -> None:
        self._lines.close()


@overload
def read_events(path: Path) -> Iterator[Event]: ...
@overload
def read_events(path: Path, *types: type[E]) -> Iterator[E]: ...
def read_events(path: Path, *types: type[Event]) -> Iterator[Event]:
    """Yield the events of a log in order, only those of `types` if given. Torn lines are skipped."""
    for raw in read_lines(path):
        known = EVENT_TYPES.get(str(raw.get("kind")))
        if types and known is not None and known not in types:
            continue
        event = event_of(raw)
        if event is not None and (not types or isinstance(event, types)):
            yield event


class EventFollower:
    """Reads the events appended since the last call; keeps a partial last line for the next call.

    position: byte offset to start at, the begin of a line; ignored if the file is shorter."""

    def __init__(self, path: Path, from_end: bool = False, position: int = 0):
        self.path = path
        size = path.stat().st_size if path.is_file() else 0
        self._position = size if from_end else position if position <= size else 0
        self._rest = b""

    @property
    def position(self) -> int:
        """Byte offset of the first line that was not returned yet."""
        return self._position - len(self._rest)

    def new(self) -> list[Event]:
        return [event for _, event in self.placed()]

    def placed(self) -> list[tuple[int, Event]]:
        """Like `new`, each with the byte offset of its line in the file."""
        if not self.path.is_file():
            return []
        with open(self.path, "rb") as file:
            file.seek(self._position)
            chunk = file.read()
        begin = self._position - len(self._rest)
        self._position += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        events = []
        for line in lines:
            if (event := parse_event(line.decode("utf-8", "replace"))) is not None:
                events.append((begin, event))
            begin += len(line) + 1
        return events
