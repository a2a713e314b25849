"""Receipts of a run's rows, read and counted independently, to verify plan and summary."""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tunesmith.report.record import read_object
from tunesmith.rundir.json_lines import read_lines
from tunesmith.rundir.paths import RunDir

SPLITS = ("train", "validation")
TRAINED = ("kept", "masked", "truncated")
"""Outcomes of rows that are used for training or validation; all others are excluded."""
MAX_REJECTS_SHOWN = 200
_NUMBER = re.compile(r"\d+")


@dataclass
class Sums:
    """Numbers of rows, tokens and supervised tokens."""

    rows: int = 0
    tokens: int = 0
    supervised_tokens: int = 0

    def add(self, rows: int, tokens: int, supervised_tokens: int) -> None:
        self.rows += rows
        self.tokens += tokens
        self.supervised_tokens += supervised_tokens


@dataclass
class Receipts:
    """Totals of the receipts.

    by_outcome: split -> outcome -> sums. reasons: number of rows for each, with numbers in the text elided. duplicated:
    ids of rows with more than one receipt. last_row: the highest row id, -1 for none. num_duplicates: rows equal to an
    earlier one, kept or not. lost_tokens: removed by truncation. locations: "file:line" of each validation row.
    rejects: the first MAX_REJECTS_SHOWN; num_rejects: all. summary: content of summary.json.
    """

    by_outcome: dict[str, dict[str, Sums]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    num_rows: int = 0
    duplicated: list[int] = field(default_factory=list)
    last_row: int = -1
    num_duplicates: int = 0
    lost_tokens: int = 0
    lost_supervised_tokens: int = 0
    locations: dict[int, str] = field(default_factory=dict)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    num_rejects: int = 0
    summary: dict[str, Any] = field(default_factory=dict)

    def sums(self, *outcomes: str, split: str | None = None) -> Sums:
        """Return the sum over the given outcomes (all if none are given), of one split or of both."""
        total = Sums()
        for name, by_outcome in self.by_outcome.items():
            for outcome, sums in by_outcome.items():
                if (split is None or name == split) and (not outcomes or outcome in outcomes):
                    total.add(sums.rows, sums.tokens, sums.supervised_tokens)
        return total


def read_receipts(run: RunDir) -> Receipts:
    receipts, seen = Receipts(summary=read_object(run.receipts / "summary.json")), set()
    for split in SPLITS:
        for line in read_lines(run.receipts / f"{split}.jsonl"):
            _note(receipts, line, split, seen)
    receipts.last_row = max(seen, default=-1)
    for line in read_lines(run.rejects):
        receipts.num_rejects += 1
        if len(receipts.rejects) < MAX_REJECTS_SHOWN:
            receipts.rejects.append(line)
    return receipts


def _note(receipts: Receipts, line: dict[str, Any], split: str, seen: set[int]) -> None:
    outcome, row = str(line.get("fate")), line.get("row")
    sums = receipts.by_outcome.setdefault(split, {}).setdefault(outcome, Sums())
    sums.add(1, _whole(line, "tokens"), _whole(line, "supervised_tokens"))
    receipts.num_rows += 1
    receipts.num_duplicates += line.get("duplicate_of") is not None
    receipts.lost_tokens += _whole(line, "lost_tokens")
    receipts.lost_supervised_tokens += _whole(line, "lost_supervised_tokens")
    if line.get("reason"):
        receipts.reasons[f"{outcome}: {_NUMBER.sub('…', str(line['reason']))}"] += 1
    if not isinstance(row, int):
        return
    if row in seen:
        receipts.duplicated.append(row)
    seen.add(row)
    if split == "validation":
        receipts.locations[row] = f"{line.get('source')}:{line.get('line')}"


def _whole(line: dict[str, Any], key: str) -> int:
    value = line.get(key)
    return value if isinstance(value, int) else 0
