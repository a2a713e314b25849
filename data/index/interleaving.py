"""Interleave several data sets so that after every position each has its share, to within one sample.

The schedule of an epoch of L positions, of which source i has m_i, is a sequence in which after any k positions the
count c_i(k) of each source satisfies |c_i(k) - k m_i / L| < 1. That such a sequence always exists is Tijdeman's theorem
(The chairman assignment problem, Discrete Mathematics 32, 1980); in scheduling it is called proportionate progress
(Baruah, Cohen, Plaxton and Varvel, Algorithmica 15, 1996).

Construction and proof. Count positions from 0. Since c_i(k) is an integer, the bound says
floor(k m_i / L) <= c_i(k) <= ceil(k m_i / L): the j-th sample of source i (j = 1 .. m_i) has to be placed in the window
from position floor((j - 1) L / m_i) to position ceil(j L / m_i) - 1. These are unit jobs with integer release times and
deadlines. They can be placed fractionally: serve source i at the constant rate m_i / L, so that job j is served during
[(j - 1) L / m_i, j L / m_i], which is inside its window; every position then has the total load sum(m_i) / L = 1. The
polytope of a bipartite matching has integer vertices (Birkhoff, von Neumann), so there is a placement of whole jobs,
too. For unit jobs, taking at each position the released job with the earliest deadline finds a placement if there is
one (Jackson 1955; Horn 1974). This is what `Interleaving` does, with integer arithmetic only.

Ties are broken by a hash of the source and j: with equal shares the order within a round then varies, so that no rank
always receives the same source.
"""

import math
from collections.abc import Sequence
from heapq import heapify, heappop, heappush

import numpy as np

VARIED = 1 << 14
"""Minimum length of the schedule before it repeats (if the epoch is that long). Counts with a common divisor would
repeat after a few positions, and so would the order within a round."""
_MASK_64 = (1 << 64) - 1


class Interleaving:
    """The schedule of one epoch; all epochs have the same. counts: samples of each source per epoch, at least 0.

    Positions up to the highest one requested are computed once (about a microsecond each) and kept (2 bytes each): the
    result is a pure function of `counts`, only the time depends on earlier calls.
    """

    def __init__(self, counts: Sequence[int]):
        """Raises ValueError if a count is negative, if all are 0, or if there are more than 65,536."""
        if not 0 < len(counts) <= 1 << 16 or min(counts) < 0 or not sum(counts):
            raise ValueError(f"counts must not be negative, and not all 0; given: {list(counts)[:20]}")
        divisor = math.gcd(*counts)
        period = sum(counts) // divisor
        repeats = min(divisor, math.ceil(VARIED / period))  # an epoch may end within: every period has exact shares
        self.counts = tuple(counts)
        self.length = sum(counts)
        self._counts = tuple(count * repeats // divisor for count in counts)
        self._period = period * repeats
        self._sources = np.zeros(0, np.uint16)
        self._schedule = _Schedule(self._counts, self._period)

    def sources(self, start: int, stop: int) -> np.ndarray:
        """Return the source of each position in start .. stop of an epoch, int64. Raises ValueError outside it."""
        self._check(start, stop)
        self._extend(min(stop, self._period))
        return self._sources[np.arange(start, stop) % self._period].astype(np.int64)

    def counts_before(self, position: int) -> np.ndarray:
        """Return how many of the first `position` samples of an epoch each source has, int64 [sources]."""
        self._check(position, position)
        whole, rest = divmod(position, self._period)
        self._extend(rest)
        return whole * np.array(self._counts, np.int64) + np.bincount(self._sources[:rest], minlength=len(self.counts))

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.length:
            raise ValueError(f"positions {start} to {stop} are outside an epoch of {self.length} samples")

    def _extend(self, stop: int) -> None:
        if (missing := stop - len(self._sources)) > 0:
            chunk = min(max(missing, len(self._sources), 1024), self._period - len(self._sources))
            added = np.fromiter(self._schedule.next(chunk), self._sources.dtype, chunk)
            self._sources = np.concatenate([self._sources, added])


class _Schedule:
    """Earliest deadline first. A source has one job at a time: its next sample."""

    def __init__(self, counts: Sequence[int], length: int):
        self._counts, self._length, self._position = counts, length, 0
        self._ready = [self._job(source, 1) for source, count in enumerate(counts) if count]
        heapify(self._ready)
        self._waiting: list[tuple[int, int, int]] = []  # (release, source, j)

    def next(self, number: int) -> list[int]:
        """Return the sources of the next positions."""
        sources, ready, waiting = [], self._ready, self._waiting
        for position in range(self._position, self._position + number):
            while waiting and waiting[0][0] <= position:
                _, source, j = heappop(waiting)
                heappush(ready, self._job(source, j))
            _, _, source, j = heappop(ready)
            sources.append(source)
            if j < self._counts[source]:
                heappush(waiting, (j * self._length // self._counts[source], source, j + 1))
        self._position += number
        return sources

    def _job(self, source: int, j: int) -> tuple[int, int, int, int]:
        """The j-th sample of a source: (position after its deadline, tie-break, source, j)."""
        return -(-j * self._length // self._counts[source]), _mixed(source, j), source, j


def _mixed(source: int, j: int) -> int:
    value = (source * 0x9E3779B97F4A7C15 + j * 0xD1B54A32D192ED03) & _MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64  # the finalizer of splitmix64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return value ^ (value >> 31)
