"""Files of JSON lines: one object a line, appended by one write call each, read around damaged lines."""

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class LineFile:
    """Appends lines to a file, one write call a line: a crash tears at most the last, and no line joins a torn one."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(self._fd).st_size
        self._torn = size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"

    def append(self, value: Mapping[str, Any]) -> None:
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


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file in order; damaged lines are skipped, a file that is missing or unreadable is empty."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                if (value := parse_line(line)) is not None:
                    yield value
    except OSError:
        return


def parse_line(line: str) -> dict[str, Any] | None:
    """The object of one line; None where the line is torn, empty or holds something else."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def finite_json(value: Any) -> Any:
    """The value as JSON can hold it: numbers that are not finite become the strings "nan", "inf" and "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: finite_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_json(item) for item in value]
    return value
