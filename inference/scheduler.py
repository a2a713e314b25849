"""Continuous batching: selects the sequences of the next step and the number of rows of each.

Every generating sequence gets its next token; the rest of the step is filled with prompt rows (chunked prefill), so a
long prompt delays the others by at most one step. If the cache is full, a sequence gives up its slot and is recomputed
later. It keeps its tokens and its sampler, so its output does not change (preemption by recomputation, Kwon et al.
2023, arXiv:2309.06180).
"""

from tunesmith.inference.kv_cache import KVCache
from tunesmith.inference.sequence import Sequence

Part = tuple[Sequence, int]
"""A sequence and its number of rows in the step."""


class Scheduler:
    """cache_tokens: capacity of the KV cache. step_rows: maximum rows of a step, unless more sequences are generating.
    active: sequences with a slot, in the order in which they joined."""

    def __init__(self, cache: KVCache, cache_tokens: int, step_rows: int):
        self.cache, self.cache_tokens, self.step_rows = cache, cache_tokens, step_rows
        self.active: list[Sequence] = []

    def has_room(self, num_tokens: int) -> bool:
        """Whether another sequence of that many tokens fits in the cache. The first always does."""
        reserved = self.cache.reserved_tokens() + self.cache.would_reserve(num_tokens)
        return not self.active or reserved <= self.cache_tokens

    def join(self, sequence: Sequence) -> None:
        sequence.slot = self.cache.open(min(len(sequence.tokens) + 1, self.cache.context))
        self.active.append(sequence)

    def leave(self, sequence: Sequence) -> None:
        self.active.remove(sequence)
        if sequence.slot is not None:
            self.cache.close(sequence.slot)
            sequence.slot = None

    def schedule(self) -> tuple[list[Part], list[Sequence]]:
        """The parts of the next step, sorted by adapter, and the preempted sequences."""
        preempted = self._make_room()
        left = max(self.step_rows, len(self.active))
        left -= sum(sequence.num_uncached() == 1 for sequence in self.active)
        parts = []
        for sequence in self.active:
            uncached = sequence.num_uncached()
            count = 1 if uncached == 1 else min(uncached, left, sequence.max_rows() or left)
            if uncached > 1:
                left -= count
            if count > 0:
                parts.append((sequence, count))
        return sorted(parts, key=lambda part: part[0].adapter), preempted

    def _make_room(self) -> list[Sequence]:
        """Make room for the tokens of the step. If the cache is full, the sequences that joined last are preempted."""
        for sequence in self.active:
            if sequence.slot is not None:
                self.cache.make_room(sequence.slot, min(len(sequence.tokens), self.cache.context))
        preempted = []
        while len(self.active) > 1 and self.cache.reserved_tokens() > self.cache_tokens:
            last = self.active[-1]
            self.leave(last)
            preempted.append(last)
        return preempted
