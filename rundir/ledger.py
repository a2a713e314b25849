"""The ledger: which rows were used in which step. Every rank writes its own file during training; reading them proves
that no row was skipped or repeated.

One line per step and rank: {"step", "attempt", "samples": [...], "rows": [...], "num_tokens", "supervised_tokens",
"micro_batch_size", "passes_per_sequence", "crc32"}; the last is the checksum of the others and the rank. Earlier
versions wrote neither it nor the sizes of the passes. Runs on a mixture of data sets also have "datasets", the number
of samples of each. A step whose update was skipped has "skipped": true.
`samples` are the sample ids in training order, `rows` the row ids within them. A step that was trained again after a
crash appears twice; the later attempt counts, since the weights of the earlier one were lost.
"""

import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import Any

from tunesmith.progress import advance
from tunesmith.rundir.json_lines import LineFile, parse_line, read_lines
from tunesmith.rundir.paths import RunDir


@dataclass(frozen=True)
class LedgerEntry:
    step: int
    attempt: int
    samples: tuple[int, ...]
    rows: tuple[int, ...]
    num_tokens: int
    supervised_tokens: int
    skipped: bool = False
    """Whether the gradient was not finite, so that these rows changed nothing."""
    micro_batch_size: int | None = None
    """As in the plan at that step; None in lines of earlier versions."""
    passes_per_sequence: int = 1
    datasets: Mapping[str, int] | None = None
    """Number of samples of each data set of a mixture; None without one."""


class Ledger:
    """Appends the entries of one rank. Call `sync` before committing a checkpoint, so that its entries are durable."""

    def __init__(self, run: RunDir, rank: int, attempt: int):
        self.attempt, self._rank = attempt, rank
        self._lines = LineFile(run.ledger_of(rank))

    def write(
        self,
        step: int,
        samples: Sequence[int],
        rows: Sequence[int],
        num_tokens: int,
        supervised_tokens: int,
        passes: tuple[int, int],
        *,
        datasets: Mapping[str, int] | None = None,
        skipped: bool = False,
    ) -> None:
        """Record the rows that this rank used in step `step` (the first is 1). passes: micro_batch_size and
        passes_per_sequence. datasets: samples of each data set of a mixture. skipped: the update was.

        Raises OSError if the entry is not written completely.
        """
        entry = {
            "kind": "ledger",
            "step": step,
            "attempt": self.attempt,
            "samples": list(map(int, samples)),
            "rows": list(map(int, rows)),
            "num_tokens": int(num_tokens),
            "supervised_tokens": int(supervised_tokens),
            "micro_batch_size": passes[0],
            "passes_per_sequence": passes[1],
            **({} if datasets is None else {"datasets": dict(datasets)}),
            **({"skipped": True} if skipped else {}),
        }
        self._lines.append({**entry, "crc32": _checksum(entry, self._rank)})

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


@dataclass
class LedgerCheck:
    """num_lines: those that match their checksum. faults: file, line and what is wrong. num_unhashed: lines of an
    earlier version, which have no checksum."""

    num_lines: int = 0
    faults: list[str] = field(default_factory=list)
    num_unhashed: int = 0


def check_ledger(run: RunDir, world_size: int) -> LedgerCheck:
    """Compare every line with its checksum. world_size: the number of ranks, each of which has a file once the run has
    started to train."""
    result = LedgerCheck()
    paths = sorted(run.ledger.glob("rank-*.jsonl")) if run.ledger.is_dir() else []
    if paths and (missing := {run.ledger_of(rank) for rank in range(world_size)} - set(paths)):
        result.faults.append(f"{min(missing)} is missing")
    for path in paths:
        _check_lines(path, result)
    return result


def _check_lines(path: Path, result: LedgerCheck) -> None:
    rank, attempt, torn = int(re.sub(r"\D", "", path.stem) or 0), 0, 0
    hashed, unhashed = set[int](), dict[int, list[int]]()  # attempts; lines by attempt
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            entry = parse_line(line)
            if number % 1000 == 0:
                advance()
            if entry is None or type(entry.get("attempt")) is not int:
                torn = torn or number
                continue
            if torn and entry["attempt"] == attempt:  # a crash tears only the last line of an attempt
                result.faults.append(f"{path}:{torn}: the line cannot be read")
            attempt, torn = entry["attempt"], 0
            recorded = entry.pop("crc32", None)
            if recorded is None:
                unhashed.setdefault(attempt, []).append(number)
                continue
            hashed.add(attempt)
            if recorded == _checksum(entry, rank):
                result.num_lines += 1
            else:
                result.faults.append(f"{path}:{number}: the line does not match its checksum: it was modified")
    for attempt, lines in unhashed.items():
        if attempt in hashed:
            result.faults += [f"{path}:{number}: the line has no checksum: it was modified" for number in lines]
        else:
            result.num_unhashed += len(lines)


def _checksum(entry: Mapping[str, Any], rank: int) -> int:
    return zlib.crc32(json.dumps(entry, separators=(",", ":")).encode(), rank)


def _entries(path: Path) -> Iterator[LedgerEntry]:
    """Yield the entries of one rank as written. Torn and damaged lines are skipped; a reader sees the step missing."""
    for raw in read_lines(path):
        if raw.get("kind") != "ledger":
            continue
        try:
            samples, rows = tuple(map(index, raw["samples"])), tuple(map(index, raw["rows"]))
            numbers = index(raw["num_tokens"]), index(raw["supervised_tokens"])
            skipped, size = raw.get("skipped") is True, raw.get("micro_batch_size")
            passes = None if size is None else index(size), index(raw.get("passes_per_sequence", 1))
            named = raw.get("datasets")
            datasets = {str(name): index(count) for name, count in named.items()} if isinstance(named, dict) else None
            place = index(raw["step"]), index(raw["attempt"])
            yield LedgerEntry(*place, samples, rows, *numbers, skipped, *passes, datasets)
        except (KeyError, TypeError):
            continue
