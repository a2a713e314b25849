"""The log of a run: append-only, one JSON object a line.

Every event has `time` (seconds since the epoch) and `kind`; the kinds and their fields are listed in KINDS.
A reader skips what it does not know, so kinds may gain fields.
"""

import errno
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KINDS = {
    "start": "attempt, step, world_size, pid, host, resumed_from (path or null)",
    "phase": "phase: loading | evaluating | training | exporting",
    "kernels": "items: [{operation, implementation, difference (null: it failed), tolerance, holds}]",
    "step": "step, total_steps, epoch, loss, learning_rate, grad_norm, num_tokens, supervised_tokens, token_accuracy, "
    "step_s, tokens_per_s, peak_memory_bytes, skipped (true where the gradient was not finite)",
    "evaluation": "step, when: before | during | after, loss, perplexity, token_accuracy, num_examples, num_tokens, "
    "seconds, best (true where it is the best so far)",
    "answers": "step, when: before | after, items: [{row, prompt, reference, answer, stopped}]",
    "retained": "general rows (evaluation.retain): step, when: before | after, loss and the like as in evaluation",
    "few_shot": "the untrained model with training rows in its prompt: step, shots, loss and the like as in evaluation",
    "checkpoint": "step, path, num_bytes, seconds (until it was committed), stall_s (that the loop stood still), "
    "reason: schedule | best | preemption | end",
    "mirror": "step, url, seconds",
    "resume": "step, path, why, set_aside: [{path, why}]",
    "export": "path, form: adapter | model, gate: {...}",
    "warning": "message, code",
    "error": "what, where, remedy",
    "end": "outcome: done | early_stopped | preempted | failed, step, exit_code, seconds",
}


class LineFile:
    """Appends lines to a file, one write call a line: a crash tears at most the last, and no line joins a torn one."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(self._fd).st_size
        self._torn = size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"

    def append(self, value: dict[str, Any]) -> None:
        """Append one JSON object. Raises OSError where the disk does not take the whole line."""
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        # a lone surrogate (a path that is no UTF-8) becomes its JSON escape
        line = (b"\n" if self._torn else b"") + text.encode("utf-8", "backslashreplace") + b"\n"
        written = os.write(self._fd, line)
        self._torn = written != len(line)
        if self._torn:
            raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes were taken", str(self.path))

    def sync(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class EventLog:
    """Appends events to a file."""

    def __init__(self, path: Path):
        self.path = path
        self._lines = LineFile(path)

    def write(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Append one event and return it. Numbers that are not finite are written as strings: JSON has no NaN."""
        if kind not in KINDS:
            raise ValueError(f"unknown event kind {kind!r}; the kinds are {', '.join(KINDS)}")
        event = {"time": round(time.time(), 3), "kind": kind, **_finite(fields)}
        self._lines.append(event)
        return event

    def sync(self) -> None:
        self._lines.sync()

    def close(self) -> None:
        self._lines.close()


def read_events(path: Path, *kinds: str) -> Iterator[dict[str, Any]]:
    """The events of a log in order, of the given kinds only where any are given. Torn lines are skipped."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            event = parse_event(line)
            if event is not None and (not kinds or event["kind"] in kinds):
                yield event


def parse_event(line: str) -> dict[str, Any] | None:
    """One line of the log; None where the line is torn or empty."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "kind" in event else None


class EventFollower:
    """Reads what was appended since the last call; keeps a half-written last line for the next call."""

    def __init__(self, path: Path, from_end: bool = False):
        self.path = path
        self._position = path.stat().st_size if from_end and path.is_file() else 0
        self._rest = b""

    def new(self) -> list[dict[str, Any]]:
        return [event for _, event in self.placed()]

    def placed(self) -> list[tuple[int, dict[str, Any]]]:
        """As `new`, each with the byte of the file at which its line begins."""
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


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
