"""A part of a file that can be read by itself: what is tokenised, cached and given to other processes as one."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

SHARD_BYTES = 4 << 20  # a second or two of tokenising: what a kill in the middle costs


@dataclass(frozen=True)
class Shard:
    """A part of a file. start, stop: bytes, or row groups of tables. first_line: line (or row) it starts at, from 1.
    header: a CSV file's columns. sha256: of the content, and of all else that says how it is read."""

    path: str
    kind: str
    start: int
    stop: int
    first_line: int
    sha256: str
    header: tuple[str, ...] = ()

    def portable(self) -> str:
        """JSON, for another process that sees the file at the same path."""
        return json.dumps({**asdict(self), "path": str(Path(self.path).resolve())})

    @classmethod
    def from_portable(cls, text: str) -> "Shard":
        fields = json.loads(text)
        return cls(**{**fields, "header": tuple(fields["header"])})
