"""Receipts: the outcome of every row read, one line per row, and counts that add up.

    train.jsonl, validation.jsonl   {"row", "source", "line", "split", "fate", "tokens", "supervised_tokens", "reason",
                                     "lost_tokens"?, "lost_supervised_tokens"?, "dataset"?, "duplicate_of"?}
    deidentified.jsonl              {"row", "source", "line", "found": {kind: places}}, rows with replacements only
    rejects.jsonl                   {"row", "source", "line", "reason", "remedy", "text"}
    summary.json                    the counts; near_duplicates: {"train": rows similar to an earlier one, "across":
                                    held-out rows similar to a training row, "examples": [{"row", "place", "like",
                                    "share"}]}; special_token_rows: rows in the indexes with special tokens in their
                                    content, if there are any; inserted: rows into whose
                                    answers the chat template inserts text, by the text; datasets: rows and samples
                                    of each data set, if they have names

Outcomes (the key `fate`): kept; masked (kept, but an assistant message has weight 0); truncated; dropped (too long);
duplicate (dropped, equal to the row duplicate_of; if duplicates are kept, the outcome is kept and duplicate_of is still
set); rejected; unselected (more rows than max_rows of the data set). tokens and supervised_tokens count the tokens in
the index.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from tunesmith.data.outcomes import OUTCOMES
from tunesmith.data.refusal import RefusalCode

SPLITS = ("train", "validation")
_INDEXED = [OUTCOMES.index(outcome) for outcome in ("kept", "truncated", "masked")]
_REJECTED = OUTCOMES.index("rejected")


@dataclass(frozen=True)
class RowOutcomes:
    """All arrays [N], by row id. split: 0 train, 1 validation. outcome: index in OUTCOMES. duplicate_of: row id or -1.
    tokens, supervised: number of the row's tokens in an index. line: in its file."""

    split: np.ndarray
    outcome: np.ndarray
    duplicate_of: np.ndarray
    line: np.ndarray
    tokens: np.ndarray
    supervised: np.ndarray
    lost_tokens: np.ndarray
    lost_supervised: np.ndarray

    @property
    def indexed(self) -> np.ndarray:
        """Whether each row is in an index, for training or validation; bool [N]."""
        return np.isin(self.outcome, _INDEXED)


@dataclass(frozen=True)
class Note:
    """Why a row is not kept unchanged. text: the beginning of a rejected row. code: None if the row comes from the
    cache, which does not store it."""

    reason: str
    remedy: str
    text: str = ""
    code: RefusalCode | None = None


@dataclass(frozen=True)
class Reject:
    """A rejected row. row: row number over all files; source, line: its place."""

    row: int
    source: str
    line: int
    reason: str
    remedy: str
    text: str
    code: RefusalCode | None = None
    """As in Note."""

    @classmethod
    def of(cls, row: int, source: str, line: int, note: Note) -> "Reject":
        return cls(row, source, line, note.reason, note.remedy, note.text, note.code)

    def as_json(self) -> dict[str, str | int]:
        """Return an entry of rejects.jsonl."""
        return {name: value for name, value in vars(self).items() if name != "code"}


@dataclass
class ReceiptWriter:
    """Writer of receipts in row order, shard by shard."""

    directory: Path
    outcomes: RowOutcomes
    replaced: Counter[str] = field(default_factory=Counter)
    """Number of de-identified places by kind, over all rows so far."""
    _files: dict[str, IO[str]] = field(default_factory=dict)

    def __enter__(self) -> "ReceiptWriter":
        self.directory.mkdir(parents=True, exist_ok=True)
        for name in (*SPLITS, "rejects"):
            if name != "validation" or self.outcomes.split.any():
                self._files[name] = open(self.directory / f"{name}.jsonl", "w", encoding="utf-8")
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files.values():
            file.close()

    def write(self, source: str, first_row: int, count: int, notes: Mapping[int, Note], dataset: str = "") -> None:
        """Write the receipts of rows first_row .. first_row + count. notes: by row id. dataset: name of their data set;
        empty for none."""
        outcomes, shown = self.outcomes, json.dumps(source, ensure_ascii=False)
        part = slice(first_row, first_row + count)
        columns = (
            outcomes.split,
            outcomes.outcome,
            outcomes.line,
            outcomes.tokens,
            outcomes.supervised,
            outcomes.duplicate_of,
        )
        lines: tuple[list[str], list[str]] = ([], [])
        for row, (split, outcome, line, tokens, supervised, duplicate_of) in enumerate(
            zip(*(column[part].tolist() for column in columns), strict=True), start=first_row
        ):
            note = notes.get(row)
            text = (
                f'{{"row":{row},"source":{shown},"line":{line},"split":"{SPLITS[split]}","fate":"{OUTCOMES[outcome]}",'
                f'"tokens":{tokens},"supervised_tokens":{supervised},'
                f'"reason":{json.dumps(note.reason, ensure_ascii=False) if note else "null"}'
            )
            if outcomes.lost_tokens[row]:
                lost_tokens, lost_supervised = outcomes.lost_tokens[row], outcomes.lost_supervised[row]
                text += f',"lost_tokens":{lost_tokens},"lost_supervised_tokens":{lost_supervised}'
            if dataset:
                text += f',"dataset":"{dataset}"'
            lines[split].append(f'{text},"duplicate_of":{duplicate_of}}}\n' if duplicate_of >= 0 else text + "}\n")
            if outcome == _REJECTED:
                reject = Reject.of(row, source, line, notes[row])
                self._files["rejects"].write(json.dumps(reject.as_json(), ensure_ascii=False) + "\n")
        for split, name in enumerate(SPLITS):
            if lines[split]:
                self._files[name].writelines(lines[split])

    def write_replaced(self, source: str, first_row: int, path: Path) -> None:
        """Write the replacements in the rows of a shard. path: its found.jsonl; older cached shards have none."""
        if not path.is_file():
            return
        with open(path, encoding="utf-8") as file:
            for line in file:
                raw = json.loads(line)
                row = first_row + raw["row"]
                self.replaced.update(raw["found"])
                if "deidentified" not in self._files:
                    self._files["deidentified"] = open(  # noqa: SIM115 (closed by __exit__)
                        self.directory / "deidentified.jsonl", "w", encoding="utf-8"
                    )
                receipt = {"row": row, "source": source, "line": int(self.outcomes.line[row]), "found": raw["found"]}
                self._files["deidentified"].write(json.dumps(receipt, ensure_ascii=False) + "\n")
