"""Streaming check that a file is JSON Lines with one object per line. Jobs validate the objects themselves."""

import codecs
import json

from tunesmith.serving.errors import ApiError

MAX_LINE_BYTES = 64 << 20
MAX_BRANCHES = 1 << 18
"""Limit of lists and objects in JSON input: each takes about 60 bytes of memory for 3 bytes of text, and parsing
millions of them blocks other requests. Brackets within strings are counted too."""


class JsonLines:
    """Incremental checker; buffers at most one line. Errors are raised by `finish`."""

    def __init__(self) -> None:
        self._rest = b""
        self._number = 0
        self._objects = 0
        self.error: str | None = None

    def feed(self, chunk: bytes) -> None:
        if self.error is not None:
            return
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._line(line)
        if len(self._rest) > MAX_LINE_BYTES:
            self.error = f"Line {self._number + 1} is longer than {MAX_LINE_BYTES} bytes."

    def finish(self) -> None:
        """Check the last line. Raises ApiError if the file is not JSON Lines."""
        if self.error is None and self._rest:
            self._line(self._rest)
        if self.error is None and not self._objects:
            self.error = "The file is empty."
        if self.error is not None:
            raise ApiError(
                "Expected file to have JSONL format, where every line is a valid JSON dictionary. " + self.error,
                param="file",
                code="invalid_jsonl",
            )

    def _line(self, line: bytes) -> None:
        self._number += 1
        if self._number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if self.error is not None or not line.strip():
            return
        if num_branches(line) > MAX_BRANCHES:
            self.error = f"Line {self._number} contains more than {MAX_BRANCHES} lists and objects."
            return
        try:
            value = _DECODER.decode(line.decode("utf-8"))
        except UnicodeDecodeError:
            self.error = f"Line {self._number} is not UTF-8 text."
        except (ValueError, RecursionError):
            self.error = f"Line {self._number} is not valid JSON."
        else:
            self._objects += 1
            if not isinstance(value, dict):
                self.error = f"Line {self._number} is not a dictionary."


def num_branches(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{")


def _reject_constant(name: str) -> None:
    raise ValueError(name)


_DECODER = json.JSONDecoder(parse_constant=_reject_constant)
"""Created once: `json.loads` with `parse_constant` would create a decoder for every line."""
