"""Hashes of many 64-bit values at once."""

import numpy as np


def mix(value: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64, uint64 [N]; unsigned arithmetic wraps, as it should."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
