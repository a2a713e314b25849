"""Packing: whole documents into samples of at most max_seq_len tokens, as few as can be.

Bin by bin, from the longest document that is left: what fills the room exactly goes in, one document or two; else the
longest that fits, and again. That is best-fit decreasing (Johnson et al. 1974) with a look one document further, which
is what leaves a third of its padding where rows are about half a sample long.
"""

import numpy as np


def pack(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The bin of each document, int64 [D], bins numbered from 0 without gaps. A function of its arguments alone.

    lengths: tokens of each document, int [D], each from 1 to capacity; ValueError otherwise.
    Time grows with D log D, memory by 24 bytes a document.
    """
    lengths = np.asarray(lengths, np.int64)
    if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= capacity:
        raise ValueError(f"documents have {lengths.min()} to {lengths.max()} tokens, a bin holds 1 to {capacity}")
    left = _Left(lengths, capacity)
    bins = np.empty(len(lengths), np.int64)
    count = 0
    while left.present:
        room = capacity
        while room and (chosen := left.best(room)):
            for length in chosen:
                bins[left.take(length)] = count
                room -= length
        count += 1
    return bins


class _Left:
    """The documents that are in no bin yet, by length. present: bit n is set where one of n tokens is left."""

    def __init__(self, lengths: np.ndarray, capacity: int):
        self.capacity, self.present, self._mirrored = capacity, 0, 0
        self._order = np.argsort(lengths, kind="stable")
        counts = np.bincount(lengths, minlength=capacity + 1)
        self._next, self._counts = (np.cumsum(counts) - counts).tolist(), counts.tolist()
        for length in np.flatnonzero(counts).tolist():
            self._flip(length)

    def best(self, room: int) -> tuple[int, ...]:
        """The lengths to put into a bin of so much room next; none where nothing fits."""
        fitting = self.present & ((1 << room + 1) - 1)
        longest = fitting.bit_length() - 1
        if not fitting or longest == room or room == self.capacity:
            return (longest,) if fitting else ()
        pairs = fitting & self._mirrored >> self.capacity - room  # bit n: n is there, and room - n
        if room % 2 == 0 and self._counts[room // 2] < 2:
            pairs &= ~(1 << room // 2)
        if pairs:
            longer = pairs.bit_length() - 1
            return longer, room - longer
        return (longest,)

    def take(self, length: int) -> int:
        """The first document of this length that is left."""
        document = int(self._order[self._next[length]])
        self._next[length] += 1
        self._counts[length] -= 1
        if not self._counts[length]:
            self._flip(length)
        return document

    def _flip(self, length: int) -> None:
        self.present ^= 1 << length
        self._mirrored ^= 1 << self.capacity - length
