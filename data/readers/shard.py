"""A part of a file that can be read independently: the unit of tokenization, caching and distribution to processes."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

SHARD_BYTES = 4 << 20  # one or two seconds of tokenization, the work lost when a process is killed


@dataclass(frozen=True)
class Shard:
    """A part of a file. start, stop: bytes, or row groups of tables. first_line: its first line (or row), 1-based.
    header, delimiter: columns of a CSV file, and the character between them (empty: detected). sha256: hash of the
    content and of everything else that affects how it is read."""

    path: str
    kind: str
    start: int
    stop: int
    first_line: int
    sha256: str
    header: tuple[str, ...] = ()
    delimiter: str = ""

    def portable(self) -> str:
        """Serialize as JSON for another process that sees the file at the same path."""
        return json.dumps({**asdict(self), "path": str(Path(self.path).resolve())})

    @classmethod
    def from_portable(cls, text: str) -> "Shard":
        fields = json.loads(text)
        return cls(**{**fields, "header": tuple(fields["header"])})
