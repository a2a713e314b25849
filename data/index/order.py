"""Sample order: a pure function of (seed, epoch, position), without state or a stored permutation.

A Feistel network over the next even power of two is a bijection for any round function (Luby and Rackoff 1988); cycle
walking until the value is in range restricts it to any size (Black and Rogaway 2002). Only integer arithmetic is used:
the order is the same on every machine and in every version. Tests pin values.
"""

import hashlib
from functools import lru_cache

import numpy as np

ROUNDS = 8  # 4 suffice in theory for large sizes; tiny domains need 8 to look random (see the test)
_MASK_64 = (1 << 64) - 1


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


def samples_at(seed: int, epoch: int, positions: np.ndarray, num_samples: int) -> np.ndarray:
    """Vectorized `sample_at`, int64 [N]. Every rank computes the samples of all ranks, for the step's global counts.
    Raises ValueError if a position is outside the epoch."""
    if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < num_samples:
        raise ValueError(f"positions up to {positions.max()} are outside an epoch of {num_samples} samples")
    values = positions.astype(np.uint64)
    half_bits = max(3, ((num_samples - 1).bit_length() + 1) // 2)
    keys = _round_keys(seed, epoch)
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


@lru_cache(maxsize=64)
def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    digest = hashlib.blake2b(f"tunesmith order {seed} {epoch}".encode(), digest_size=8 * ROUNDS).digest()
    return tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(ROUNDS))
