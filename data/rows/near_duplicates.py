"""Near-duplicates: rows that share most of their token sequences but are not equal.

The sketch of a row is a sample of its shingles (hashes of SHINGLE consecutive tokens): those with a hash below a bound
that depends only on the row's length, so that similar rows have similar samples (Broder 1997, resemblance of
documents). Shingles that many rows have (system prompts, template text) carry no information and are ignored. A row is
compared only with the rows that first had its shingles, so the cost is linear in the number of rows, not in the number
of pairs. Shingles are stored in files, bucketed by hash: memory use is proportional to the number of rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tunesmith.data.rows.hashing import mix
from tunesmith.data.spill import Spill

SHINGLE = 4
SAMPLES = 24  # minimum per row, if it is long enough: estimates the share to within about 0.1
NEAR = 0.7  # minimum share of common shingles of near-duplicates
MAX_ROWS = 1_000_000  # about 800 bytes of temporary disk space per row
BUCKET_SHINGLES = 500_000  # in memory at a time: about 30 MB, including sorting
_MIN_SHARED = 4
_COMMON_ROWS = 100  # a shingle in more rows than this, and in more than _COMMON_SHARE of them, is ignored
_COMMON_SHARE = 0.05
_LIKELY = 0.2  # two rows are compared if at least this share of one's shingles occurred first in the other
_TRIES = 3
_FACTOR = np.uint32(0x9E3779B1)
_SHINGLE = np.dtype([("hash", "<u8"), ("row", "<u4")])
_TELLING = np.dtype([("hash", "<u8"), ("row", "<u4"), ("leader", "<u4")])


@dataclass(frozen=True)
class Near:
    """row is a near-duplicate of `other`: an earlier row, or a training row if it is held out. share: 0 to 1."""

    row: int
    other: int
    share: float


def sketch(tokens: np.ndarray, lengths: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return sampled shingle hashes (uint64), and the row of each (int64). Shingles do not cross documents.

    tokens: uint32 [T], concatenated documents; lengths, rows: [D]; lengths sum to T.
    """
    count = len(tokens) - SHINGLE + 1
    if count < 1:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    # A cheap 32-bit hash selects the shingles; only those get a better one.
    cheap = tokens[:count] * _FACTOR
    for ahead in range(1, SHINGLE):
        cheap += tokens[ahead : ahead + count]
        cheap *= _FACTOR
        cheap ^= cheap >> np.uint32(15)
    # Powers of two, so that the bounds of rows of similar length are equal or differ by a factor of two.
    halvings = np.maximum(0, np.floor(np.log2(np.maximum(lengths, 1) / SAMPLES))).astype(np.uint32)
    taken = cheap <= np.repeat(np.uint32(2**32 - 1) >> halvings, lengths)[:count]
    starts = np.cumsum(lengths) - lengths
    for back in range(1, SHINGLE):  # no shingle starts at the last tokens of a document
        ends = starts + lengths - back
        taken[ends[(ends >= starts) & (ends < count)]] = False
    chosen = np.flatnonzero(taken)
    hashes = np.zeros(len(chosen), np.uint64)
    for ahead in range(SHINGLE):
        hashes = mix(hashes + tokens[chosen + ahead] + np.uint64(1))
    return hashes, rows[np.searchsorted(starts, chosen, side="right") - 1]


def near_duplicates(
    sketches: Iterable[tuple[np.ndarray, np.ndarray]], rank: np.ndarray, directory: Path | None = None
) -> list[Near]:
    """Return the rows that are near-duplicates of a row of lower rank, by row id. rank: int64 [N], a permutation.

    directory: for temporary files, about 800 bytes per row; default: the system's. Memory: about 20 bytes per row.
    """
    buckets = 1 + len(rank) * 2 * SAMPLES // BUCKET_SHINGLES
    with TemporaryDirectory(dir=directory, prefix="near-") as folder:
        shingles = Spill(Path(folder), "shingles", _SHINGLE, buckets)
        for hashes, rows in sketches:
            records = np.empty(len(hashes), _SHINGLE)
            records["hash"], records["row"] = hashes, rows
            shingles.append(records, (hashes % np.uint64(buckets)).astype(np.int64))
        telling = Spill(Path(folder), "telling", _TELLING, buckets)
        counts = np.zeros(len(rank), np.int64)
        for records in shingles:
            if len(records):
                kept = _telling(records["hash"], records["row"], rank)
                counts += np.bincount(kept["row"], minlength=len(rank))
                telling.append(kept, kept["row"] * np.int64(buckets) // len(rank))
        return _nearest(telling, counts, Path(folder) / "by_row")


def _nearest(telling: Spill, counts: np.ndarray, by_row: Path) -> list[Near]:
    """Return the best match of each row that has one. by_row: a file to write, all hashes ordered by row."""
    with open(by_row, "wb") as file:
        for records in telling:
            records["hash"][np.argsort(records["row"], kind="stable")].tofile(file)
    ends, nears = np.cumsum(counts), []
    with open(by_row, "rb", buffering=0) as file:

        def hashes_of(row: int) -> np.ndarray:
            file.seek(8 * int(ends[row] - counts[row]))
            return np.frombuffer(file.read(8 * int(counts[row])), np.uint64)

        for records in telling:
            best: dict[int, Near] = {}
            tries: dict[int, int] = {}
            for row, other in _likely_pairs(records, counts):
                tries[row] = tries.get(row, 0) + 1
                if row in best or tries[row] > _TRIES:
                    continue
                one, two = hashes_of(row), hashes_of(other)
                common = len(np.intersect1d(one, two, assume_unique=True))
                share = common / (len(one) + len(two) - common)
                if share >= NEAR:
                    best[row] = Near(row, other, round(share, 3))
            nears += [best[row] for row in sorted(best)]
    return nears


def _likely_pairs(records: np.ndarray, counts: np.ndarray) -> list[tuple[int, int]]:
    """Return pairs of rows that share many shingles, the best candidate of each row first."""
    linked = records[records["leader"] != records["row"]]
    both = linked["row"].astype(np.int64) * len(counts) + linked["leader"]
    pairs, shared = np.unique(both, return_counts=True)
    rows, others = pairs // len(counts), pairs % len(counts)
    likely = np.flatnonzero(shared >= np.maximum(_MIN_SHARED, _LIKELY * counts[rows]))
    likely = likely[np.lexsort((-shared[likely], rows[likely]))]
    return list(zip(rows[likely].tolist(), others[likely].tolist(), strict=True))


def _telling(hashes: np.ndarray, rows: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Return each shingle once per row, without common ones, with the row of lowest rank that contains it."""
    order = np.lexsort((rank[rows], hashes))
    hashes, rows = hashes[order], rows[order]
    new = np.concatenate([[True], (hashes[1:] != hashes[:-1]) | (rows[1:] != rows[:-1])])
    hashes, rows = hashes[new], rows[new]
    first = np.concatenate([[True], hashes[1:] != hashes[:-1]])
    group = np.cumsum(first) - 1
    telling = np.bincount(group)[group] <= max(_COMMON_ROWS, _COMMON_SHARE * len(rank))
    kept = np.empty(int(telling.sum()), _TELLING)
    kept["hash"], kept["row"] = hashes[telling], rows[telling]
    kept["leader"] = rows[np.flatnonzero(first)][group][telling]
    return kept
