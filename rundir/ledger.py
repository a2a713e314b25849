"""The ledger: which rows were used in which step. Every rank writes its own file during training; reading them proves
that no row was skipped or repeated.

One line per step and rank: {"step", "attempt", "samples": [...], "rows": [...], "num_tokens", "supervised_tokens"}.
`samples` are the sample ids in training order, `rows` the row ids within them. A step that was trained again after a
crash appears twice; the later attempt counts, since the weights of the earlier one were lost.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path

from tunesmith.rundir.json_lines import LineFile, read_lines
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
    """Appends the entries of one rank. Call `sync` before committing a checkpoint, so that its entries are durable."""

    def __init__(self, run: RunDir, rank: int, attempt: int):
        self.attempt = attempt
        self._lines = LineFile(run.ledger_of(rank))

    def write(self, step: int, samples: Sequence[int], rows: Sequence[int], num_tokens: int, supervised_tokens: int):
        """Record the rows that this rank uses in step `step` (the first is 1).

        Raises OSError if the entry is not written completely.
        """
        self._lines.append(
            {
                "kind": "ledger",
                "step": step,
                "attempt": self.attempt,
                "samples": list(map(int, samples)),
                "rows": list(map(int, rows)),
                "num_tokens": int(num_tokens),
                "supervised_tokens": int(supervised_tokens),
            }
        )

    def sync(self) -> None:
        self._lines.sync()

    def close(self) -> None:
        self._lines.close()


def read_ledger(run: RunDir) -> dict[int, list[LedgerEntry]]:
    """Return the valid entries by step, ranks in order: those of the attempt whose weights were kept.

    An attempt that starts at step s continues from the weights after s - 1, so the entries of earlier attempts for s
    and all later steps are void, even if the attempt itself did not get that far.
    """
    by_rank = [list(_entries(path)) for path in sorted(run.ledger.glob("rank-*.jsonl"))]
    first_steps: dict[int, int] = {}
    for entry in (entry for entries in by_rank for entry in entries):
        first_steps[entry.attempt] = min(entry.step, first_steps.get(entry.attempt, entry.step))
    valid: dict[int, list[LedgerEntry]] = {}
    for entry in (entry for entries in by_rank for entry in entries):
        if all(attempt <= entry.attempt or entry.step < first for attempt, first in first_steps.items()):
            valid.setdefault(entry.step, []).append(entry)
    return dict(sorted(valid.items()))


def _entries(path: Path) -> Iterator[LedgerEntry]:
    """Yield the entries of one rank as written. Torn and damaged lines are skipped; a reader sees the step missing."""
    for raw in read_lines(path):
        if raw.get("kind") != "ledger":
            continue
        try:
            samples, rows = tuple(map(index, raw["samples"])), tuple(map(index, raw["rows"]))
            numbers = index(raw["num_tokens"]), index(raw["supervised_tokens"])
            yield LedgerEntry(index(raw["step"]), index(raw["attempt"]), samples, rows, *numbers)
        except (KeyError, TypeError):
            continue
