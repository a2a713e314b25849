"""Which rows fed which step: written by every rank as it trains, read to prove that no row was skipped or repeated.

One line a step and rank: {"step", "attempt", "samples": [...], "rows": [...], "num_tokens", "supervised_tokens"}.
`samples` are positions' samples in the order they were fed, `rows` the row ids inside them. A step that was trained
again after a crash stands there twice; the later attempt counts, since the weights of the earlier one were lost.
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
    """Appends one rank's entries; `sync` before a checkpoint commits: a checkpoint never outlives its ledger."""

    def __init__(self, run: RunDir, rank: int, attempt: int):
        self.attempt = attempt
        self._lines = LineFile(run.ledger_of(rank))

    def write(self, step: int, samples: Sequence[int], rows: Sequence[int], num_tokens: int, supervised_tokens: int):
        """Record what this rank feeds to the step that will be number `step` (1 is the first).

        Raises OSError where the disk does not take the whole entry.
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
    """The entries that count, by step: those of the attempt whose weights went on, ranks in order.

    An attempt that begins at step s goes on from the weights after s - 1, so what earlier attempts fed to s and to all
    later steps is void, also where the attempt itself never came that far.
    """
    by_rank = [list(_entries(path)) for path in sorted(run.ledger.glob("rank-*.jsonl"))]
    first_steps: dict[int, int] = {}
    for entry in (entry for entries in by_rank for entry in entries):
        first_steps[entry.attempt] = min(entry.step, first_steps.get(entry.attempt, entry.step))
    counted: dict[int, list[LedgerEntry]] = {}
    for entry in (entry for entries in by_rank for entry in entries):
        if all(attempt <= entry.attempt or entry.step < first for attempt, first in first_steps.items()):
            counted.setdefault(entry.step, []).append(entry)
    return dict(sorted(counted.items()))


def _entries(path: Path) -> Iterator[LedgerEntry]:
    """One rank's entries as written; torn and damaged lines are skipped: their steps are missed by who needs them."""
    for raw in read_lines(path):
        if raw.get("kind") != "ledger":
            continue
        try:
            samples, rows = tuple(map(index, raw["samples"])), tuple(map(index, raw["rows"]))
            numbers = index(raw["num_tokens"]), index(raw["supervised_tokens"])
            yield LedgerEntry(index(raw["step"]), index(raw["attempt"]), samples, rows, *numbers)
        except (KeyError, TypeError):
            continue
