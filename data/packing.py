"""Packing: whole documents into samples of at most max_seq_len tokens, as few as can be.

Best-fit decreasing (Johnson et al. 1974): from the longest document to the shortest, each goes where it leaves the
least room. On lengths as they occur the bins but the last few are full (see the test's padding).
"""

from collections.abc import Iterator

import numpy as np

_AT_A_TIME = 1 << 14


def pack(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The bin of each document, int64 [D], bins numbered from 0 without gaps. A function of its arguments alone.

    lengths: tokens of each document, int [D], each from 1 to capacity; ValueError otherwise.
    Time grows with D log D, memory by 24 bytes a document.
    """
    lengths = np.asarray(lengths, np.int64)
    if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= capacity:
        raise ValueError(f"documents have {lengths.min()} to {lengths.max()} tokens, a bin holds 1 to {capacity}")
    order = np.argsort(-lengths, kind="stable")
    bins = np.empty(len(lengths), np.int64)
    open_bins: list[list[int]] = [[] for _ in range(capacity + 1)]  # by the room that is left in them
    rooms = 0  # bit r is set where some bin has room r: finding the best fit is one shift
    count = 0
    for document, length in _in_turn(order, lengths):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            chosen = open_bins[room].pop()
            if not open_bins[room]:
                rooms ^= 1 << room
        else:
            room, chosen = capacity, count
            count += 1
        bins[document] = chosen
        left = room - length
        if left:
            open_bins[left].append(chosen)
            rooms |= 1 << left
    return bins


def _in_turn(order: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[int, int]]:
    """Each document and its length. Python's own numbers are made of a few at a time: of all they would be 80 bytes."""
    for start in range(0, len(order), _AT_A_TIME):
        some = order[start : start + _AT_A_TIME]
        yield from zip(some.tolist(), lengths[some].tolist(), strict=True)
