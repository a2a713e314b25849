"""JSON Lines files: one object per line, each appended by one write call; damaged lines are skipped on reading."""

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class LineFile:
    """Appends lines, one write call per line: a crash tears at most the last line, and later lines stay separate."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(exist_ok=True)  # not its parents: a directory that was deleted with its run
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(self._fd).st_size
        self._torn = size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"

    def append(self, value: Mapping[str, Any]) -> None:
        """Append one JSON object. Raises OSError if the line is not written completely."""
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        # a lone surrogate (of a path that is not UTF-8) becomes its JSON escape
        line = (b"\n" if self._torn else b"") + text.encode("utf-8", "backslashreplace") + b"\n"
        written = os.write(self._fd, line)
        self._torn = written != len(line)
        if self._torn:
            raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes were written", str(self.path))

    def sync(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file in order. Damaged lines are skipped; a missing or unreadable file is empty."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                if (value := parse_line(line)) is not None:
                    yield value
    except OSError:
        return


def parse_line(line: str) -> dict[str, Any] | None:
    """Parse the object of one line; None if the line is torn, empty or not an object."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def finite_json(value: Any) -> Any:
    """Return the value with non-finite numbers replaced by the strings "nan", "inf" and "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: finite_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_json(item) for item in value]
    return value
