"""The receipts of a run's rows: read once, counted here anew, so that the summary can be held to them."""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tunesmith.report.record import read_lines, read_object
from tunesmith.rundir.paths import RunDir

SPLITS = ("train", "validation")
MAX_REJECTS_SHOWN = 200
_NUMBER = re.compile(r"\d+")


@dataclass
class Sums:
    """Rows of one fate, and what they hold."""

    rows: int = 0
    tokens: int = 0
    supervised_tokens: int = 0

    def add(self, tokens: int, supervised_tokens: int) -> None:
        self.rows += 1
        self.tokens += tokens
        self.supervised_tokens += supervised_tokens


@dataclass
class Receipts:
    """by_fate: split -> fate -> sums. twice: row ids with more than one receipt. last_row: the highest row id, -1 for
    none. reasons: how often each occurs, numbers in them left out. places: where a validation row stands ("file:line").
    rejects: the first of them; num_rejects: all."""

    by_fate: dict[str, dict[str, Sums]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    num_rows: int = 0
    twice: list[int] = field(default_factory=list)
    last_row: int = -1
    places: dict[int, str] = field(default_factory=dict)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    num_rejects: int = 0
    summary: dict[str, Any] = field(default_factory=dict)

    def rows_of(self, *fates: str) -> int:
        return sum(sums.rows for split in self.by_fate.values() for fate, sums in split.items() if fate in fates)


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
    fate, row = str(line.get("fate")), line.get("row")
    tokens, supervised = (
        value if isinstance(value, int) else 0 for value in map(line.get, ("tokens", "supervised_tokens"))
    )
    receipts.by_fate.setdefault(split, {}).setdefault(fate, Sums()).add(tokens, supervised)
    receipts.num_rows += 1
    if line.get("reason") and fate != "kept":
        receipts.reasons[f"{fate}: {_NUMBER.sub('…', str(line['reason']))}"] += 1
    if not isinstance(row, int):
        return
    if row in seen:
        receipts.twice.append(row)
    seen.add(row)
    if split == "validation":
        receipts.places[row] = f"{line.get('source')}:{line.get('line')}"
