"""Sample order: a pure function of (seed, epoch, position), without state or a stored permutation.

`PlainOrder` shuffles all samples together, `MixedOrder` interleaves data sets with planned shares.

A Feistel network over the next even power of two is a bijection for any round function (Luby and Rackoff 1988); cycle
walking until the value is in range restricts it to any size (Black and Rogaway 2002). Only integer arithmetic is used:
the order is the same on every machine and in every version. Tests pin values.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from tunesmith.configs.plan import DataFacts
from tunesmith.data.index.interleaving import Interleaving

ROUNDS = 8  # 4 suffice in theory for large sizes; tiny domains need 8 to look random (see the test)
_MASK_64 = (1 << 64) - 1


class SampleOrder(Protocol):
    """Positions are numbered from 0 over all epochs. epoch_samples: number of positions of an epoch."""

    @property
    def epoch_samples(self) -> int: ...

    def samples(self, first: int, stop: int) -> np.ndarray:
        """Return the samples at positions first .. stop, int64. They may be in several epochs."""
        ...


@dataclass(frozen=True)
class PlainOrder:
    """Every epoch contains every sample once. Position p is sample_at(seed, p // N, p % N, N) of N samples."""

    seed: int
    epoch_samples: int

    def samples(self, first: int, stop: int) -> np.ndarray:
        number, samples = self.epoch_samples, [np.zeros(0, np.int64)]
        while first < stop:
            epoch, start = divmod(first, number)
            end = min(number, start + stop - first)
            samples.append(samples_at(self.seed, epoch, np.arange(start, end), number))
            first += end - start
        return np.concatenate(samples)


@dataclass(frozen=True)
class Share:
    """A data set in a mixture: its samples are first_sample .. first_sample + num_samples of the index."""

    name: str
    first_sample: int
    num_samples: int
    samples_per_epoch: int


class MixedOrder:
    """Interleaves data sets: which one has a position of an epoch, see `Interleaving`.

    The samples of a data set are used in passes over all of them, each shuffled differently; a pass continues in the
    next epoch where the last one stopped. Its n-th use in the run (n from 0) is sample
    first_sample + samples_at(seed, n // N, [n % N], N, name) of its N samples.
    """

    def __init__(self, seed: int, shares: Sequence[Share]):
        """Raises ValueError if no data set is used, or a used one has no samples."""
        if empty := [share.name for share in shares if share.samples_per_epoch and not share.num_samples]:
            raise ValueError(f"{empty[0]} has no samples")
        self.seed, self.shares = seed, tuple(shares)
        self._interleaving = Interleaving([share.samples_per_epoch for share in shares])

    @property
    def epoch_samples(self) -> int:
        return self._interleaving.length

    def samples(self, first: int, stop: int) -> np.ndarray:
        samples = [np.zeros(0, np.int64)]
        while first < stop:
            epoch, start = divmod(first, self.epoch_samples)
            end = min(self.epoch_samples, start + stop - first)
            samples.append(self._of_epoch(epoch, start, end))
            first += end - start
        return np.concatenate(samples)

    def counts(self, position: int) -> dict[str, int]:
        """Return how many of the first `position` samples of the run each data set has."""
        epoch, rest = divmod(position, self.epoch_samples)
        before = self._interleaving.counts_before(rest).tolist()
        return {s.name: epoch * s.samples_per_epoch + n for s, n in zip(self.shares, before, strict=True)}

    def _of_epoch(self, epoch: int, start: int, stop: int) -> np.ndarray:
        sources = self._interleaving.sources(start, stop)
        used, samples = self._interleaving.counts_before(start).tolist(), np.empty(stop - start, np.int64)
        for number in np.unique(sources).tolist():
            share, places = self.shares[number], np.flatnonzero(sources == number)
            first = epoch * share.samples_per_epoch + used[number]
            samples[places] = share.first_sample + self._uses(share, first, first + len(places))
        return samples

    def _uses(self, share: Share, first: int, stop: int) -> np.ndarray:
        """Return the samples of the uses first .. stop of a data set, counted from its first sample."""
        uses, number = np.arange(first, stop), share.num_samples
        if number == 1:  # cycle walking would take 64 iterations for each pass
            return np.zeros(stop - first, np.int64)
        passes = uses // number
        parts = [
            samples_at(self.seed, each, uses[passes == each] % number, number, share.name)
            for each in range(first // number, (stop - 1) // number + 1)
        ]
        return np.concatenate(parts)


def order_of(seed: int, data: DataFacts) -> SampleOrder:
    """Return the order of a run's training samples. seed: of the recipe."""
    if data.epoch_samples is None:
        return PlainOrder(seed, data.train.num_samples)
    return MixedOrder(
        seed,
        [Share(each.name, each.first_sample, each.num_samples, each.samples_per_epoch) for each in data.mixed],
    )


def sample_at(seed: int, epoch: int, position: int, num_samples: int) -> int:
    """Return the sample at a position of an epoch: a bijection of range(num_samples) for each (seed, epoch).

    Time and memory are constant. Raises ValueError if the position is outside the epoch.
    """
    if not 0 <= position < num_samples:
        raise ValueError(f"position {position} is outside an epoch of {num_samples} samples")
    half_bits = max(3, ((num_samples - 1).bit_length() + 1) // 2)
    keys = _round_keys(seed, epoch)
    value = position
    while True:  # at most four iterations on average (above 16 samples): the domain is less than four times the range
        value = _permute(value, half_bits, keys)
        if value < num_samples:
            return value


def samples_at(seed: int, epoch: int, positions: np.ndarray, num_samples: int, name: str = "") -> np.ndarray:
    """Vectorized `sample_at`, int64 [N]. Every rank computes the samples of all ranks, for the step's global counts.
    name: of a data set, which has an order of its own. Raises ValueError if a position is outside the epoch."""
    if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < num_samples:
        raise ValueError(f"positions up to {positions.max()} are outside an epoch of {num_samples} samples")
    values = positions.astype(np.uint64)
    half_bits = max(3, ((num_samples - 1).bit_length() + 1) // 2)
    keys = _round_keys(seed, epoch, name)
    values = _permute_all(values, half_bits, keys)
    while len(outside := np.flatnonzero(values >= num_samples)):
        values[outside] = _permute_all(values[outside], half_bits, keys)
    return values.astype(np.int64)


def _permute_all(values: np.ndarray, half_bits: int, keys: tuple[int, ...]) -> np.ndarray:
    """Apply `_permute` elementwise: unsigned overflow has the same effect as its masks."""
    half, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> half, values & mask
    for key in keys:
        mixed = right * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(31))) & mask)
    return left << half | right


def _permute(value: int, half_bits: int, keys: tuple[int, ...]) -> int:
    mask = (1 << half_bits) - 1
    left, right = value >> half_bits, value & mask
    for key in keys:
        mixed = (right * 0x9E3779B97F4A7C15 + key) & _MASK_64
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64  # the finalizer of splitmix64
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK_64
        left, right = right, left ^ ((mixed ^ (mixed >> 31)) & mask)
    return left << half_bits | right


@lru_cache(maxsize=256)
def _round_keys(seed: int, epoch: int, name: str = "") -> tuple[int, ...]:
    text = f"tunesmith order {seed} {epoch}" + (f" {name}" if name else "")
    digest = hashlib.blake2b(text.encode(), digest_size=8 * ROUNDS).digest()
    return tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(ROUNDS))
