"""Near duplicates: rows that share most of their word sequences though they are not equal.

Each row is sketched by a sample of its shingles (SHINGLE tokens in a row, hashed): those whose hash falls below a bound
that depends on the row's length alone, so that similar rows sample alike (Broder 1997, resemblance of documents).
Shingles that many rows have (system prompts, the template's own words) say nothing and are left out. A row is compared
only with the rows that were first to have its shingles, so the work grows with the rows, not with their pairs.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

SHINGLE = 4
SAMPLES = 24  # a row at least, where it is long enough: an estimate of the share within about 0.1
NEAR = 0.7  # share of common shingles from which two rows count as near duplicates
MAX_ROWS = 1_000_000  # about 600 bytes a row are needed at once
_MIN_SHARED = 4
_COMMON_ROWS = 100  # a shingle in more rows than this, and than _COMMON_SHARE of them, is left out
_COMMON_SHARE = 0.05
_LIKELY = 0.2  # share of a row's shingles that lead to another row, from which the two are compared
_TRIES = 3
_FACTOR = np.uint32(0x9E3779B1)


@dataclass(frozen=True)
class Near:
    """row is much like `other`: an earlier one, or a training row where it is held out. share: 0 to 1."""

    row: int
    other: int
    share: float


def sketch(tokens: np.ndarray, lengths: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sampled shingle hashes (uint64), and the row of each (int64). Documents lie end to end.
    Shingles do not cross them.

    tokens: uint32 [T]; lengths, rows: [D]; lengths sum to T.
    """
    count = len(tokens) - SHINGLE + 1
    if count < 1:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    # Which shingles are taken is decided by a cheap hash of 32 bits, all others never get a better one.
    cheap = tokens[:count] * _FACTOR
    for ahead in range(1, SHINGLE):
        cheap += tokens[ahead : ahead + count]
        cheap *= _FACTOR
        cheap ^= cheap >> np.uint32(15)
    # Powers of two, so that rows of nearly equal length have the same bound, or one of them twice the other's.
    halvings = np.maximum(0, np.floor(np.log2(np.maximum(lengths, 1) / SAMPLES))).astype(np.uint32)
    taken = cheap <= np.repeat(np.uint32(2**32 - 1) >> halvings, lengths)[:count]
    starts = np.cumsum(lengths) - lengths
    for back in range(1, SHINGLE):  # the last tokens of a document begin no shingle
        ends = starts + lengths - back
        taken[ends[(ends >= starts) & (ends < count)]] = False
    chosen = np.flatnonzero(taken)
    hashes = np.zeros(len(chosen), np.uint64)
    for ahead in range(SHINGLE):
        hashes = _mix(hashes + tokens[chosen + ahead] + np.uint64(1))
    return hashes, rows[np.searchsorted(starts, chosen, side="right") - 1]


def near_duplicates(sketches: Iterable[tuple[np.ndarray, np.ndarray]], rank: np.ndarray) -> list[Near]:
    """Rows much like a row of lower rank, in the order of their ids. rank: int64 [N], by row id, each one once."""
    parts = list(sketches)
    hashes = np.concatenate([part[0] for part in parts] or [np.zeros(0, np.uint64)])
    rows = np.concatenate([part[1] for part in parts] or [np.zeros(0, np.int64)])
    if not len(hashes):
        return []
    hashes, rows, leaders = _telling(hashes, rows, rank)
    counts = np.bincount(rows, minlength=len(rank))
    linked = leaders != rows
    pairs, shared = np.unique(np.stack([rows[linked], leaders[linked]], axis=1), axis=0, return_counts=True)
    likely = np.flatnonzero(shared >= np.maximum(_MIN_SHARED, _LIKELY * counts[pairs[:, 0]]))
    likely = likely[np.lexsort((-shared[likely], pairs[likely, 0]))]  # each row's likeliest first
    by_row = np.argsort(rows, kind="stable")
    ends = np.cumsum(counts)
    best: dict[int, Near] = {}
    tries: dict[int, int] = {}
    for row, other in pairs[likely].tolist():
        tries[row] = tries.get(row, 0) + 1
        if row in best or tries[row] > _TRIES:
            continue
        one, two = (hashes[by_row[ends[r] - counts[r] : ends[r]]] for r in (row, other))
        common = len(np.intersect1d(one, two, assume_unique=True))
        share = common / (len(one) + len(two) - common)
        if share >= NEAR:
            best[row] = Near(row, other, round(share, 3))
    return [best[row] for row in sorted(best)]


def _telling(hashes: np.ndarray, rows: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each shingle once a row, without those that many rows have, and with it the row of lowest rank that has it."""
    order = np.lexsort((rank[rows], hashes))
    hashes, rows = hashes[order], rows[order]
    new = np.concatenate([[True], (hashes[1:] != hashes[:-1]) | (rows[1:] != rows[:-1])])
    hashes, rows = hashes[new], rows[new]
    first = np.concatenate([[True], hashes[1:] != hashes[:-1]])
    group = np.cumsum(first) - 1
    telling = np.bincount(group)[group] <= max(_COMMON_ROWS, _COMMON_SHARE * len(rank))
    return hashes[telling], rows[telling], rows[np.flatnonzero(first)][group][telling]


def _mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64; unsigned arithmetic wraps, as it should."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
