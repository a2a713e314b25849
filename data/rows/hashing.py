"""Vectorized hashes of 64-bit values."""

import numpy as np


def mix(value: np.ndarray) -> np.ndarray:
    """Apply the finalizer of splitmix64, uint64 [N] to uint64 [N]; unsigned overflow is intended."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
