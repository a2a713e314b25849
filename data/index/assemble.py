"""Assemble token indexes from prepared shards: split and pack the rows, and write a receipt for every row."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.data.index import datasets
from tunesmith.data.index.packing import pack
from tunesmith.data.index.shard import INSERTED, OMITTED
from tunesmith.data.index.summary import Summary, summarise
from tunesmith.data.index.token_index import FLAG, TOKEN, IndexFacts, IndexWriter
from tunesmith.data.outcomes import OUTCOMES
from tunesmith.data.rows.near_duplicates import MAX_ROWS, near_duplicates, sketch
from tunesmith.data.rows.receipts import SPLITS, Note, ReceiptWriter, Reject, RowOutcomes
from tunesmith.data.rows.split import first_equals, held_out
from tunesmith.errors import InputError
from tunesmith.rundir.atomic import write_json

NEAR_EXAMPLES = 5
_DUPLICATE, _REJECTED = OUTCOMES.index("duplicate"), OUTCOMES.index("rejected")


@dataclass(frozen=True)
class PreparedShard:
    """directory: its tokens. source: its file, as named in receipts. validation: whether the file is one of the user's
    validation files. dataset: name of its data set; empty for files without one."""

    directory: Path
    source: str
    first_line: int
    validation: bool
    dataset: str = ""


@dataclass(frozen=True)
class Shape:
    """Options that apply after tokenization. validation: the fraction to hold out; None if there are validation files,
    or no validation. packing: of the training split; validation rows are never packed. paired: whether the documents
    of a row are one sample. mixed: names of the data sets that are mixed: samples are packed, and rows held out, from
    each by itself. max_rows: (data set, maximum number of its rows)."""

    max_seq_len: int
    packing: bool
    duplicates: str
    validation: float | None
    seed: int
    paired: bool = False
    mixed: tuple[str, ...] = ()
    max_rows: tuple[tuple[str, int], ...] = ()


class Assembly:
    """The outcomes of all rows; `write` creates the indexes and the receipts. Memory: about 70 bytes per row."""

    def __init__(self, shards: Sequence[PreparedShard], shape: Shape):
        self.shards, self.shape = shards, shape
        columns = [np.load(shard.directory / "rows.npy", mmap_mode="r") for shard in shards]
        self._counts = [len(column) for column in columns]
        self._first_rows = [0, *np.cumsum(self._counts).tolist()]
        self._documents = _joined(columns, "documents")
        lines = [column["line"] + shard.first_line for column, shard in zip(columns, shards, strict=True)]
        from_validation = np.repeat([shard.validation for shard in shards], self._counts)
        high, low = _joined(columns, "key_high"), _joined(columns, "key_low")
        outcomes = RowOutcomes(
            split=from_validation.astype(np.uint8),
            outcome=_joined(columns, "fate").copy(),
            duplicate_of=np.full(len(high), -1, np.int64),
            line=np.concatenate(lines),
            tokens=_joined(columns, "tokens"),
            supervised=_joined(columns, "supervised"),
            lost_tokens=_joined(columns, "lost_tokens"),
            lost_supervised=_joined(columns, "lost_supervised"),
        )
        self.datasets = datasets.row_ranges([shard.dataset for shard in shards], self._counts, shape.mixed)
        """Row ids of the data sets, by name."""
        self._samples: dict[str, tuple[int, int]] = {}
        datasets.select_rows(outcomes, (high, low), self.datasets, shape.max_rows, shape.seed)
        self.leaks = _resolve_duplicates(outcomes, high, low, shape.duplicates)
        """Row ids of the user's validation rows that are equal to training rows, which are rejected."""
        if shape.validation and shape.mixed:
            keys = high, low
            chosen = datasets.held_out_by_dataset(outcomes, keys, self.datasets, shape.validation, shape.seed)
            outcomes.split[chosen] = 1
        elif shape.validation:
            chosen = held_out(high, low, np.flatnonzero(outcomes.indexed), shape.validation, shape.seed)
            outcomes.split[chosen] = 1
        excluded = ~outcomes.indexed
        tokens, supervised = np.where(excluded, 0, outcomes.tokens), np.where(excluded, 0, outcomes.supervised)
        self.outcomes = replace(outcomes, tokens=tokens, supervised=supervised)

    @property
    def num_rejected(self) -> int:
        return int((self.outcomes.outcome == _REJECTED).sum())

    @property
    def num_special(self) -> int:
        """Number of indexed rows with special tokens in their content."""
        rows = [first + _special(shard) for first, shard in zip(self._first_rows, self.shards, strict=False)]
        return int(self.outcomes.indexed[np.concatenate(rows)].sum())

    def check_not_empty(self) -> None:
        """Raise InputError if no row is left for training, or for validation if it is requested."""
        indexed = self.outcomes.indexed
        if not (indexed & (self.outcomes.split == 0)).any():
            raise InputError(
                f"none of the {len(indexed):,} rows can be used for training",
                where=", ".join(dict.fromkeys(shard.source for shard in self.shards if not shard.validation)),
                remedy="check the rows with `tunesmith data check`; dropped and rejected rows are not used",
            )
        holds_out = self.shape.validation or any(shard.validation for shard in self.shards)
        if holds_out and not (indexed & (self.outcomes.split == 1)).any():
            raise InputError(
                "no row is left for validation",
                where="data.validation",
                remedy="add more distinct rows, or set data.validation: 0",
            )

    def write(self, directory: Path, fingerprint: str) -> Summary:
        """Write an index per split and the receipts to the directory; return the summary."""
        indexes = {}
        for number, name in enumerate(SPLITS):
            included = self.outcomes.indexed & (self.outcomes.split == number)
            if included.any():
                indexes[name] = self._write_index(directory / name, included, number == 0, f"{fingerprint}/{name}")
        with ReceiptWriter(directory / "receipts", self.outcomes) as writer:
            for number, shard in enumerate(self.shards):
                first, count = self._first_rows[number], self._counts[number]
                writer.write(shard.source, first, count, self.notes(number), shard.dataset)
                writer.write_replaced(shard.source, first, shard.directory / "found.jsonl")
        capacity = self.shape.max_seq_len if self.shape.packing else None
        summary = summarise(self.outcomes, indexes, capacity)
        summary["near_duplicates"] = self.near_duplicates(directory)
        summary["omitted"] = self.omitted()
        if inserted := self.inserted():
            summary["inserted"] = inserted
        if writer.replaced:
            summary["deidentified"] = dict(sorted(writer.replaced.items()))
        if self.num_special:
            summary["special_token_rows"] = self.num_special
        if self.datasets:
            summary["datasets"] = self.dataset_facts()
        write_json(directory / "receipts" / "summary.json", summary)
        return summary

    def dataset_facts(self) -> list[dict[str, Any]]:
        """Return the facts of every data set: fields of DataSetFacts. Samples are known after `write`."""
        return datasets.dataset_facts(self.outcomes, self.datasets, self._samples)

    def omitted(self) -> dict[str, int]:
        """Count the rows in an index of which the chat template does not show everything, by the kind of value."""
        return dict(sorted(self._counted(OMITTED, "omitted").items()))

    def inserted(self) -> dict[str, int]:
        """Count the rows in an index into whose trained answers the chat template inserts text, by the text."""
        return dict(sorted(self._counted(INSERTED, "inserted").items()))

    def _counted(self, name: str, key: str) -> Counter[str]:
        """Count the rows in an index by the names under a key. name: of a file of each shard; older ones lack it."""
        counts, indexed = Counter[str](), self.outcomes.indexed
        for first, shard in zip(self._first_rows, self.shards, strict=False):
            path = shard.directory / name
            if not path.is_file():
                continue
            with open(path, encoding="utf-8") as file:
                for line in file:
                    note = json.loads(line)
                    if indexed[first + note["row"]]:
                        counts.update(note[key].keys())
        return counts

    def near_duplicates(self, scratch: Path | None = None) -> dict[str, Any] | None:
        """Count near-duplicates other than exact duplicates: training rows similar to an earlier one, held-out rows
        similar to a training row, and examples, the latter first. None if there are too many rows to search. scratch:
        directory for temporary files."""
        searched = self.outcomes.indexed & (self.outcomes.duplicate_of < 0)
        if searched.sum() > MAX_ROWS:
            return None
        rank = np.empty(len(searched), np.int64)  # training rows first, so that held-out rows are compared with them
        rank[np.argsort(self.outcomes.split, kind="stable")] = np.arange(len(searched))
        pairs = near_duplicates((self._sketch(number, searched) for number in range(len(self.shards))), rank, scratch)
        split = self.outcomes.split
        across = [near for near in pairs if split[near.row] != split[near.other]]
        inside = [near for near in pairs if split[near.row] == split[near.other] == 0]
        examples = [
            {"row": near.row, "place": self.place(near.row), "like": self.place(near.other), "share": near.share}
            for near in (across + inside)[:NEAR_EXAMPLES]
        ]
        return {"train": len(inside), "across": len(across), "examples": examples}

    def _sketch(self, number: int, searched: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first, stop = self._first_rows[number], self._first_rows[number + 1]
        rows = np.repeat(np.arange(first, stop), self._documents[first:stop])
        lengths = np.load(self.shards[number].directory / "documents.npy")
        tokens = np.fromfile(self.shards[number].directory / "tokens.u32", TOKEN)
        chosen = searched[rows]
        return sketch(tokens[np.repeat(chosen, lengths)], lengths[chosen], rows[chosen])

    def notes(self, number: int) -> dict[int, Note]:
        """Return why rows of a shard are not kept unchanged, by row id."""
        first, count = self._first_rows[number], self._counts[number]
        notes = {}
        with open(self.shards[number].directory / "notes.jsonl", encoding="utf-8") as file:
            for line in file:
                note = json.loads(line)
                row = first + note.pop("row")
                notes[row] = Note(**note)
        for row in self.leaks[(self.leaks >= first) & (self.leaks < first + count)].tolist():
            training_row = int(self.outcomes.duplicate_of[row])
            notes[row] = Note(
                f"equal to the training row at {self.place(training_row)}: train/validation leakage",
                "remove it from the validation or the training file",
                code="equals_training_row",
            )
        return notes

    def place(self, row: int) -> str:
        """Return `file:line` of a row."""
        number = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        return f"{self.shards[number].source}:{self.outcomes.line[row]}"

    def rejects(self, limit: int) -> list[Reject]:
        """Return the first rejected rows."""
        rejects: list[Reject] = []
        for number, first in enumerate(self._first_rows[:-1]):
            rows = first + np.flatnonzero(self.outcomes.outcome[first : self._first_rows[number + 1]] == _REJECTED)
            if len(rows):
                notes = self.notes(number)
                source = self.shards[number].source
                for row in rows[: limit - len(rejects)].tolist():
                    rejects.append(Reject.of(row, source, int(self.outcomes.line[row]), notes[row]))
            if len(rejects) >= limit:
                break
        return rejects

    def _write_index(self, directory: Path, included: np.ndarray, train: bool, fingerprint: str) -> IndexFacts:
        writer = IndexWriter(directory)
        for number, shard in enumerate(self.shards):
            first, stop = self._first_rows[number], self._first_rows[number + 1]
            rows = np.repeat(np.arange(first, stop), self._documents[first:stop])
            chosen = included[rows] if len(rows) else np.zeros(0, np.bool_)
            if not chosen.any():
                continue
            lengths = np.load(shard.directory / "documents.npy")
            tokens = np.fromfile(shard.directory / "tokens.u32", TOKEN)
            supervised = np.fromfile(shard.directory / "supervised.u8", FLAG)
            kept = np.repeat(chosen, lengths)
            writer.add(tokens[kept], supervised[kept], lengths[chosen], rows[chosen])
        bins = self._pack(writer) if train and self.shape.packing else None
        if self.shape.paired:
            bins = np.unique(writer.rows(), return_inverse=True)[1]
        if train and self.shape.mixed:
            self._samples = datasets.samples_in(bins, writer.rows(), self.datasets)
        return writer.finish(bins, max_seq_len=self.shape.max_seq_len, fingerprint=fingerprint)

    def _pack(self, writer: IndexWriter) -> np.ndarray:
        if self.shape.mixed:
            return datasets.pack_each(writer.lengths(), writer.rows(), self.datasets, self.shape.max_seq_len)
        return pack(writer.lengths(), self.shape.max_seq_len)


def _special(shard: PreparedShard) -> np.ndarray:
    path = shard.directory / "special.npy"  # missing in shards of the task text that an earlier version prepared
    return np.load(path) if path.is_file() else np.zeros(0, np.int64)


def _joined(columns: list[np.ndarray], name: str) -> np.ndarray:
    return np.concatenate([column[name] for column in columns])


def _resolve_duplicates(outcomes: RowOutcomes, high: np.ndarray, low: np.ndarray, duplicates: str) -> np.ndarray:
    """Set duplicate_of, drop duplicates if requested, and reject and return validation rows equal to training rows."""
    indexed = outcomes.indexed
    outcomes.duplicate_of[:] = first_equals(high, low, indexed)
    equal = np.flatnonzero(outcomes.duplicate_of >= 0)
    leaking = (outcomes.split[equal] == 1) & (outcomes.split[outcomes.duplicate_of[equal]] == 0)
    leaks = equal[leaking]
    outcomes.outcome[leaks] = _REJECTED
    if duplicates == "drop":
        outcomes.outcome[equal[~leaking]] = _DUPLICATE
    return leaks
