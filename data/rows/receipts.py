"""Receipts: what became of every row that was read, a line a row, and counts that add up.

    train.jsonl, validation.jsonl   {"row", "source", "line", "split", "fate", "tokens", "supervised_tokens", "reason",
                                     "lost_tokens"?, "lost_supervised_tokens"?, "duplicate_of"?}
    deidentified.jsonl              {"row", "source", "line", "found": {kind: places}}, where something was replaced
    rejects.jsonl                   {"row", "source", "line", "reason", "remedy", "text"}
    summary.json                    the counts; near_duplicates: {"train": rows like an earlier one, "across": held-out
                                    rows like a training row, "examples": [{"row", "place", "like", "share"}]}

Fates: kept; masked (kept, but an assistant message has weight 0); truncated; dropped (too long); duplicate (left out,
equal to the row duplicate_of; where duplicates are kept, the receipt says kept and names that row all the same);
rejected. tokens and supervised_tokens are what is trained.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from tunesmith.data.outcomes import OUTCOMES
from tunesmith.data.refusal import RefusalCode

SPLITS = ("train", "validation")
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_TRAINED = [OUTCOMES.index(fate) for fate in ("kept", "truncated", "masked")]
_REJECTED = OUTCOMES.index("rejected")


@dataclass(frozen=True)
class Fates:
    """All arrays [N], by row id. split: 0 train, 1 validation. fate: number in OUTCOMES. duplicate_of: row id or -1.
    tokens, supervised: what is trained of the row. line: in its file."""

    split: np.ndarray
    fate: np.ndarray
    duplicate_of: np.ndarray
    line: np.ndarray
    tokens: np.ndarray
    supervised: np.ndarray
    lost_tokens: np.ndarray
    lost_supervised: np.ndarray

    @property
    def trained(self) -> np.ndarray:
        return np.isin(self.fate, _TRAINED)


@dataclass(frozen=True)
class Note:
    """Why a row is not whole. text: the beginning of a row that is left out. code: None where the row was prepared
    before: what is kept of it has no code."""

    reason: str
    remedy: str
    text: str = ""
    code: RefusalCode | None = None


@dataclass(frozen=True)
class Reject:
    """A rejected row. row: its number over all files; source, line: where it stands."""

    row: int
    source: str
    line: int
    reason: str
    remedy: str
    text: str
    code: RefusalCode | None = None
    """As of a note."""

    @classmethod
    def of(cls, row: int, source: str, line: int, note: Note) -> "Reject":
        return cls(row, source, line, note.reason, note.remedy, note.text, note.code)

    def as_json(self) -> dict[str, str | int]:
        """A line of rejects.jsonl."""
        return {name: value for name, value in vars(self).items() if name != "code"}


@dataclass
class ReceiptWriter:
    """Writes the receipts of rows in the order of their ids, shard by shard."""

    directory: Path
    fates: Fates
    found: Counter[str] = field(default_factory=Counter)
    """Places that were de-identified, by kind, over all rows so far."""
    _files: dict[str, IO[str]] = field(default_factory=dict)

    def __enter__(self) -> "ReceiptWriter":
        self.directory.mkdir(parents=True, exist_ok=True)
        for name in (*SPLITS, "rejects"):
            if name != "validation" or self.fates.split.any():
                self._files[name] = open(self.directory / f"{name}.jsonl", "w", encoding="utf-8")
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files.values():
            file.close()

    def write(self, source: str, first_row: int, count: int, notes: Mapping[int, Note]) -> None:
        """The receipts of rows first_row .. first_row + count. notes: by row id."""
        fates, shown = self.fates, json.dumps(source, ensure_ascii=False)
        part = slice(first_row, first_row + count)
        columns = (fates.split, fates.fate, fates.line, fates.tokens, fates.supervised, fates.duplicate_of)
        lines: tuple[list[str], list[str]] = ([], [])
        for row, (split, fate, line, tokens, supervised, twin) in enumerate(
            zip(*(column[part].tolist() for column in columns), strict=True), start=first_row
        ):
            note = notes.get(row)
            text = (
                f'{{"row":{row},"source":{shown},"line":{line},"split":"{SPLITS[split]}","fate":"{OUTCOMES[fate]}",'
                f'"tokens":{tokens},"supervised_tokens":{supervised},'
                f'"reason":{json.dumps(note.reason, ensure_ascii=False) if note else "null"}'
            )
            if fates.lost_tokens[row]:
                text += f',"lost_tokens":{fates.lost_tokens[row]},"lost_supervised_tokens":{fates.lost_supervised[row]}'
            lines[split].append(f'{text},"duplicate_of":{twin}}}\n' if twin >= 0 else text + "}\n")
            if fate == _REJECTED:
                reject = Reject.of(row, source, line, notes[row])
                self._files["rejects"].write(json.dumps(reject.as_json(), ensure_ascii=False) + "\n")
        for split, name in enumerate(SPLITS):
            if lines[split]:
                self._files[name].writelines(lines[split])

    def write_found(self, source: str, first_row: int, path: Path) -> None:
        """What was de-identified in the rows of a shard. path: its found.jsonl; a shard prepared earlier has none."""
        if not path.is_file():
            return
        with open(path, encoding="utf-8") as file:
            for line in file:
                raw = json.loads(line)
                row = first_row + raw["row"]
                self.found.update(raw["found"])
                if "deidentified" not in self._files:
                    self._files["deidentified"] = open(  # noqa: SIM115 (closed by __exit__)
                        self.directory / "deidentified.jsonl", "w", encoding="utf-8"
                    )
                told = {"row": row, "source": source, "line": int(self.fates.line[row]), "found": raw["found"]}
                self._files["deidentified"].write(json.dumps(told, ensure_ascii=False) + "\n")


def summarise(fates: Fates, indexes: dict[str, dict[str, Any]], capacity: int | None) -> dict[str, Any]:
    """The counts of summary.json. indexes: the facts of each split's token index. capacity: tokens a packed sample may
    hold; None where nothing is packed. Raises AssertionError where the counts do not add up."""
    splits = {}
    for number, name in enumerate(SPLITS):
        rows = fates.split == number
        if not rows.any():
            continue
        lengths = fates.tokens[rows & fates.trained]
        facts = indexes.get(name, {})
        packed = capacity is not None and name == "train" and facts
        splits[name] = {
            "rows": int(rows.sum()),
            "fates": {fate: int(count) for fate, count in _counts(fates.fate[rows]).items()},
            "trained_rows": len(lengths),
            "documents": facts.get("num_documents", 0),
            "samples": facts.get("num_samples", 0),
            "longest_document": facts.get("longest_tokens", 0),
            "tokens": int(lengths.sum()),
            "supervised_tokens": int(fates.supervised[rows & fates.trained].sum()),
            "duplicates": int((fates.duplicate_of[rows] >= 0).sum()),
            "lost_tokens": int(fates.lost_tokens[rows].sum()),
            "lost_supervised_tokens": int(fates.lost_supervised[rows].sum()),
            "length_percentiles": percentiles(lengths),
            "padding_share": round(1 - facts["num_tokens"] / (facts["num_samples"] * capacity), 6) if packed else None,
        }
        if facts:
            assert facts["num_tokens"] == splits[name]["tokens"], "the index and the receipts differ in tokens"
            assert facts["supervised_tokens"] == splits[name]["supervised_tokens"], (
                "index and receipts differ in targets"
            )
    total = Counter[str]()
    for split in splits.values():
        total.update(split["fates"])
    assert sum(total.values()) == len(fates.fate), "a row has no receipt, or two"
    return {"rows": len(fates.fate), "fates": {fate: total[fate] for fate in OUTCOMES}, "splits": splits}


def percentiles(lengths: np.ndarray) -> dict[str, int]:
    """Tokens a row at some percentiles, and the longest; empty where there are no rows."""
    if not len(lengths):
        return {}
    values = np.percentile(lengths, PERCENTILES, method="lower")
    return {f"p{p}": int(value) for p, value in zip(PERCENTILES, values, strict=True)} | {"max": int(lengths.max())}


def _counts(fate: np.ndarray) -> dict[str, int]:
    counts = np.bincount(fate, minlength=len(OUTCOMES))
    return dict(zip(OUTCOMES, counts.tolist(), strict=True))
