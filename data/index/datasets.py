"""Data sets within the prepared rows: which rows and samples are whose, and the selection of rows by max_rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tunesmith.data.index.packing import pack
from tunesmith.data.outcomes import OUTCOMES, UNSELECTED
from tunesmith.data.rows.receipts import RowOutcomes
from tunesmith.data.rows.split import held_out, ranked

RowRanges = dict[str, list[tuple[int, int]]]
"""By name of the data set: the row ids of its files, as [first, stop)."""


def row_ranges(names: Sequence[str], counts: Sequence[int], mixed: Sequence[str]) -> RowRanges:
    """Return the rows of every data set, those of `mixed` first. names: data set of each shard, empty for none. counts:
    rows of each shard."""
    ranges: RowRanges = {name: [] for name in mixed}
    first = 0
    for name, count in zip(names, counts, strict=True):
        if name:
            own = ranges.setdefault(name, [])
            if own and own[-1][1] == first:
                own[-1] = (own[-1][0], first + count)
            else:
                own.append((first, first + count))
        first += count
    return ranges


def rows_in(ranges: Sequence[tuple[int, int]], num_rows: int) -> np.ndarray:
    """Return whether each row is in one of the ranges, bool [num_rows]."""
    inside = np.zeros(num_rows, np.bool_)
    for first, stop in ranges:
        inside[first:stop] = True
    return inside


def select_rows(
    outcomes: RowOutcomes,
    keys: tuple[np.ndarray, np.ndarray],
    ranges: RowRanges,
    max_rows: Sequence[tuple[str, int]],
    seed: int,
) -> None:
    """Set the outcome of the rows beyond the limits: those that come last by a hash of their content. keys: the two
    halves of the rows' content keys. max_rows: (data set, maximum number of its rows); validation files do not
    count."""
    for name, limit in max_rows:
        usable = outcomes.indexed & (outcomes.split == 0) & rows_in(ranges[name], len(outcomes.split))
        rows = np.flatnonzero(usable)
        excess = ranked(keys[0][rows], keys[1][rows], seed, "max_rows")[limit:]
        outcomes.outcome[rows[excess]] = OUTCOMES.index(UNSELECTED)


def held_out_by_dataset(
    outcomes: RowOutcomes, keys: tuple[np.ndarray, np.ndarray], ranges: RowRanges, fraction: float, seed: int
) -> np.ndarray:
    """Return the rows to hold out: the fraction of each data set. Rows equal to rows of another data set belong to that
    of the first one here, so that equal rows are in the same split."""
    first_equal = np.where(outcomes.duplicate_of < 0, np.arange(len(outcomes.split)), outcomes.duplicate_of)
    chosen = [np.zeros(0, np.int64)]
    for own in ranges.values():
        owned = rows_in(own, len(outcomes.split))[first_equal]
        chosen.append(held_out(*keys, np.flatnonzero(outcomes.indexed & owned), fraction, seed))
    return np.sort(np.concatenate(chosen))


def pack_each(lengths: np.ndarray, rows: np.ndarray, ranges: RowRanges, capacity: int) -> np.ndarray:
    """Return the bin of each document as `pack` does, without bins that two data sets share: those of each data set are
    consecutive. rows: row id of each document."""
    bins, count = np.empty(len(lengths), np.int64), 0
    for own in ranges.values():
        documents = _documents_in(own, rows)
        bins[documents] = count + pack(lengths[documents], capacity)
        count = max(count, int(bins[documents].max(initial=-1)) + 1)
    return bins


def samples_in(bins: np.ndarray | None, rows: np.ndarray, ranges: RowRanges) -> dict[str, tuple[int, int]]:
    """Return (first, number) of the training samples of each data set. bins: sample of each document; None: each is a
    sample."""
    samples, first = {}, 0
    bins = np.arange(len(rows)) if bins is None else bins
    for name, own in ranges.items():
        numbers = np.unique(bins[_documents_in(own, rows)])
        assert not len(numbers) or (numbers[0], numbers[-1]) == (first, first + len(numbers) - 1), "mixed-up samples"
        samples[name] = (first, len(numbers))
        first += len(numbers)
    return samples


def dataset_facts(
    outcomes: RowOutcomes, ranges: RowRanges, samples: Mapping[str, tuple[int, int]]
) -> list[dict[str, Any]]:
    """Return the fields of DataSetFacts that are known from the rows, for every data set. samples: as `samples_in`
    returns, empty before the index is written."""
    facts = []
    for name, own in ranges.items():
        used = outcomes.indexed & rows_in(own, len(outcomes.split))
        trained = used & (outcomes.split == 0)
        first, number = samples.get(name, (0, 0))
        facts.append(
            {
                "name": name,
                "row_ranges": own,
                "num_rows": int(trained.sum()),
                "first_sample": first,
                "num_samples": number,
                "num_tokens": int(outcomes.tokens[trained].sum()),
                "supervised_tokens": int(outcomes.supervised[trained].sum()),
                "validation_rows": int((used & (outcomes.split == 1)).sum()),
            }
        )
    return facts


def _documents_in(ranges: Sequence[tuple[int, int]], rows: np.ndarray) -> np.ndarray:
    """Return the documents whose rows are in the ranges, int64."""
    inside = np.zeros(len(rows), np.bool_)
    for first, stop in ranges:
        inside |= (rows >= first) & (rows < stop)
    return np.flatnonzero(inside)
