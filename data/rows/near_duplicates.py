"""Near duplicates: rows that share most of their word sequences though they are not equal.

Each row is sketched by a sample of its shingles (SHINGLE tokens in a row, hashed): those whose hash falls below a bound
that depends on the row's length alone, so that similar rows sample alike (Broder 1997, resemblance of documents).
Shingles that many rows have (system prompts, the template's own words) say nothing and are left out. A row is compared
only with the rows that were first to have its shingles, so the work grows with the rows, not with their pairs.
Shingles lie in files, in buckets by their hash: memory grows with the rows' ids alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tunesmith.data.rows.hashing import mix
from tunesmith.data.spill import Spill

SHINGLE = 4
SAMPLES = 24  # a row at least, where it is long enough: an estimate of the share within about 0.1
NEAR = 0.7  # share of common shingles from which two rows count as near duplicates
MAX_ROWS = 1_000_000  # about 800 bytes a row lie on disk meanwhile
BUCKET_SHINGLES = 500_000  # in memory at once: about 30 MB with what sorts them
_MIN_SHARED = 4
_COMMON_ROWS = 100  # a shingle in more rows than this, and than _COMMON_SHARE of them, is left out
_COMMON_SHARE = 0.05
_LIKELY = 0.2  # share of a row's shingles that lead to another row, from which the two are compared
_TRIES = 3
_FACTOR = np.uint32(0x9E3779B1)
_SHINGLE = np.dtype([("hash", "<u8"), ("row", "<u4")])
_TELLING = np.dtype([("hash", "<u8"), ("row", "<u4"), ("leader", "<u4")])


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
        hashes = mix(hashes + tokens[chosen + ahead] + np.uint64(1))
    return hashes, rows[np.searchsorted(starts, chosen, side="right") - 1]


def near_duplicates(
    sketches: Iterable[tuple[np.ndarray, np.ndarray]], rank: np.ndarray, directory: Path | None = None
) -> list[Near]:
    """Rows much like a row of lower rank, in the order of their ids. rank: int64 [N], by row id, each one once.

    directory: for temporary files, about 800 bytes a row; default: the system's. Memory: about 20 bytes a row.
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
    """The likeliest other of each row that is near enough. by_row: a file to write, all hashes in the order of rows."""
    with open(by_row, "wb") as file:
        for records in telling:
            records["hash"][np.argsort(records["row"], kind="stable")].tofile(file)
    ends, found = np.cumsum(counts), []
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
            found += [best[row] for row in sorted(best)]
    return found


def _likely_pairs(records: np.ndarray, counts: np.ndarray) -> list[tuple[int, int]]:
    """Rows with those that many of their shingles lead to, each row's likeliest first."""
    linked = records[records["leader"] != records["row"]]
    both = linked["row"].astype(np.int64) * len(counts) + linked["leader"]
    pairs, shared = np.unique(both, return_counts=True)
    rows, others = pairs // len(counts), pairs % len(counts)
    likely = np.flatnonzero(shared >= np.maximum(_MIN_SHARED, _LIKELY * counts[rows]))
    likely = likely[np.lexsort((-shared[likely], rows[likely]))]
    return list(zip(rows[likely].tolist(), others[likely].tolist(), strict=True))


def _telling(hashes: np.ndarray, rows: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Each shingle once a row, without those that many rows have, and with it the row of lowest rank that has it."""
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
