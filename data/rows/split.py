"""Find equal rows, and select held-out rows by a hash of their content, so that equal rows are in the same split."""

from hashlib import blake2b

import numpy as np

from tunesmith.data.rows.hashing import mix


def first_equals(high: np.ndarray, low: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Return for each row the first usable row of equal content if that is an earlier one, else -1. int64 [N].

    high, low: the two halves of the rows' content keys, uint64 [N]. usable: bool [N]; other rows are ignored.
    """
    first = np.full(len(high), -1, np.int64)
    rows = np.flatnonzero(usable)
    if len(rows):
        order = rows[np.lexsort((low[rows], high[rows]))]  # stable: equal keys stay in row order
        starts = _starts(high[order], low[order])
        leaders = order[np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))]
        first[order] = np.where(leaders == order, -1, leaders)
    return first


def held_out(high: np.ndarray, low: np.ndarray, rows: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return the rows to hold out, int64, ascending: round(fraction * len(rows)) of them, or as close as whole groups
    of equal rows allow. At least one row is held out and at least one group is kept; empty if there are fewer than two
    groups.

    Groups are ranked by a keyed hash of their content, independent of the row order and mostly of the other rows.
    """
    order = rows[np.lexsort((low[rows], high[rows]))]
    begins = np.flatnonzero(_starts(high[order], low[order])) if len(order) else np.zeros(0, np.int64)
    if len(begins) < 2:
        return np.zeros(0, np.int64)
    sizes = np.diff(np.append(begins, len(order)))
    group_high, group_low = high[order[begins]], low[order[begins]]
    ranked = np.lexsort((group_low, group_high, _keyed_hash(group_high, group_low, seed)))
    target = max(1, round(fraction * len(rows)))
    chosen: list[int] = []
    taken = 0
    for group, size in zip(ranked.tolist(), sizes[ranked].tolist(), strict=True):
        if taken >= target or len(chosen) == len(begins) - 1:
            break
        if taken + size <= target:
            chosen.append(group)
            taken += size
    if not chosen:  # every group is larger than the target: take the smallest
        chosen = [int(ranked[np.argmin(sizes[ranked])])]
    return np.sort(np.concatenate([order[begins[group] : begins[group] + sizes[group]] for group in chosen]))


def ranked(high: np.ndarray, low: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """Return the rows' positions in the order of a keyed hash of their content, int64 [N]; equal rows are together, in
    row order. purpose: which order; those of two purposes are independent."""
    return np.lexsort((np.arange(len(high)), low, high, _keyed_hash(high, low, seed, purpose)))


def _starts(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Return True at the start of each group of equal keys, for sorted keys."""
    return np.concatenate([[True], (high[1:] != high[:-1]) | (low[1:] != low[:-1])])


def _keyed_hash(high: np.ndarray, low: np.ndarray, seed: int, purpose: str = "validation split") -> np.ndarray:
    """Return uint64 [G]. The keys are hashes, so mixing in the seed is enough for a different order per seed."""
    digest = blake2b(f"tunesmith {purpose} {seed}".encode(), digest_size=16).digest()
    first, second = (np.uint64(int.from_bytes(half, "little")) for half in (digest[:8], digest[8:]))
    return mix(mix(high ^ first) ^ low ^ second)
