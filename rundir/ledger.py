"""Which rows fed which step: written by every rank as it trains, read to prove that no row was skipped or repeated.

One line a step and rank: {"step", "attempt", "samples": [...], "rows": [...], "num_tokens", "supervised_tokens"}.
`samples` are positions' samples in the order they were fed, `rows` the row ids inside them. A step that was trained
again after a crash stands there twice; the later attempt counts, since the weights of the earlier one were lost.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.rundir.events import parse_event
from tunesmith.rundir.paths import RunDir


@dataclass(frozen=True)
class LedgerEntry:
    step: int
    attempt: int
    samples: tuple[int, ...]
    rows: tuple[int, ...]
    num_tokens: int
    supervised_tokens: int


class Ledger:
    """Appends one rank's entries; `sync` before a checkpoint commits, so that a checkpoint never outlives its ledger."""

    def __init__(self, run: RunDir, rank: int, attempt: int):
        self.attempt = attempt
        path = run.ledger_of(rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(self._fd, b"" if _ends_cleanly(path) else b"\n")

    def write(self, step: int, samples: Sequence[int], rows: Sequence[int], num_tokens: int, supervised_tokens: int):
        """Record what this rank feeds to the step that will be number `step` (1 is the first)."""
        entry = {
            "kind": "ledger",
            "step": step,
            "attempt": self.attempt,
            "samples": list(map(int, samples)),
            "rows": list(map(int, rows)),
            "num_tokens": int(num_tokens),
            "supervised_tokens": int(supervised_tokens),
        }
        os.write(self._fd, json.dumps(entry, separators=(",", ":")).encode() + b"\n")

    def sync(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def read_ledger(run: RunDir) -> dict[int, list[LedgerEntry]]:
    """The entries that count, by step: for each step those of its last attempt, ranks in order."""
    entries: dict[int, list[LedgerEntry]] = {}
    for path in sorted(run.ledger.glob("rank-*.jsonl")):
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                raw = parse_event(line)
                if raw is None:
                    continue
                entry = LedgerEntry(
                    raw["step"],
                    raw["attempt"],
                    tuple(raw["samples"]),
                    tuple(raw["rows"]),
                    raw["num_tokens"],
                    raw["supervised_tokens"],
                )
                known = entries.setdefault(entry.step, [])
                if known and known[0].attempt < entry.attempt:
                    known.clear()
                if not known or known[0].attempt == entry.attempt:
                    known.append(entry)
    return dict(sorted(entries.items()))


def _ends_cleanly(path: Path) -> bool:
    size = path.stat().st_size
    if size == 0:
        return True
    with open(path, "rb") as file:
        file.seek(size - 1)
        return file.read(1) == b"\n"
