"""Key-value cache for sequences of different lengths, in buckets of equal capacity per sequence.

A sequence that outgrows its bucket moves to the next one, of twice the capacity. Memory is at most twice what the
tokens need, each token is copied once or twice in total, and one attention call serves a whole bucket without copying
it. The slots of a bucket are contiguous: a sequence that leaves is replaced by the last one.

S slots of a bucket, C capacity in tokens, K key-value heads, D head size, T tokens of a step.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

SMALLEST = 128
"""Capacity of the smallest bucket in tokens: most short chats never move."""
_MAX_SPARE = 8
"""Maximum number of slots by which a bucket grows."""


@dataclass(eq=False)
class Slot:
    """Location of a sequence's keys and values. index: in its bucket. length: cached tokens. rope_tables: those that
    the cached keys were rotated with (`DocumentRotary.tables_of`)."""

    bucket: "Bucket"
    index: int
    length: int = 0
    rope_tables: tuple[int, ...] = ()


@dataclass(eq=False)
class Bucket:
    """slots: those in use. num_slots: those allocated. layers: by layer index, keys and values [S, K, C, D], allocated
    on the first write of the layer."""

    capacity: int
    slots: list[Slot] = field(default_factory=list)
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    num_slots: int = 0

    def layer(self, number: int, like_KTD: Tensor, value_KTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, allocated if missing with the shape, dtype and device of the arguments."""
        if number not in self.layers:
            self.layers[number] = (
                like_KTD.new_zeros(self.num_slots, like_KTD.shape[0], self.capacity, like_KTD.shape[2]),
                value_KTD.new_zeros(self.num_slots, value_KTD.shape[0], self.capacity, value_KTD.shape[2]),
            )
        return self.layers[number]

    def add(self, slot: Slot) -> None:
        if len(self.slots) == self.num_slots:
            self._resize(max(1, min(2 * self.num_slots, self.num_slots + _MAX_SPARE)))
        slot.bucket, slot.index = self, len(self.slots)
        self.slots.append(slot)

    def remove(self, slot: Slot) -> None:
        last = self.slots.pop()
        if last is not slot:
            for tensor in self._tensors():
                tensor[slot.index, :, : last.length] = tensor[last.index, :, : last.length]
            last.index = slot.index
            self.slots[slot.index] = last
        if not self.slots:
            self.layers, self.num_slots = {}, 0
        elif self.num_slots - len(self.slots) >= 2 * _MAX_SPARE:
            self._resize(len(self.slots) + _MAX_SPARE)

    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors())

    def _tensors(self) -> list[Tensor]:
        return [tensor for pair in self.layers.values() for tensor in pair]

    def _resize(self, num_slots: int) -> None:
        for number, pair in self.layers.items():
            resized = []
            for tensor in pair:
                wider = tensor.new_zeros(num_slots, *tensor.shape[1:])
                kept = min(num_slots, self.num_slots)
                wider[:kept] = tensor[:kept]
                resized.append(wider)
            self.layers[number] = (resized[0], resized[1])
        self.num_slots = num_slots


class KVCache:
    """All buckets of one model. context: maximum tokens of a sequence."""

    def __init__(self, context: int):
        self.context = context
        self._buckets: dict[int, Bucket] = {}

    def open(self, num_tokens: int) -> Slot:
        """Allocate a slot for a sequence of that many tokens."""
        bucket = self._bucket(num_tokens)
        slot = Slot(bucket, 0)
        bucket.add(slot)
        return slot

    def make_room(self, slot: Slot, num_tokens: int) -> None:
        """Move the sequence to a larger bucket if it will not fit after the next step."""
        former = slot.bucket
        if num_tokens <= former.capacity:
            return
        bucket, index, length = self._bucket(num_tokens), slot.index, slot.length
        cached = {
            number: (keys[index, :, :length].clone(), values[index, :, :length].clone())
            for number, (keys, values) in former.layers.items()
        }
        former.remove(slot)
        bucket.add(slot)
        for number, (keys, values) in cached.items():
            to_keys, to_values = bucket.layer(number, keys, values)
            to_keys[slot.index, :, :length], to_values[slot.index, :, :length] = keys, values

    def close(self, slot: Slot) -> None:
        slot.bucket.remove(slot)

    def reserved_tokens(self) -> int:
        """Tokens for which memory is allocated."""
        return sum(bucket.num_slots * bucket.capacity for bucket in self._buckets.values())

    def would_reserve(self, num_tokens: int) -> int:
        """Tokens that another slot of that length would add to `reserved_tokens`."""
        return self._capacity(num_tokens)

    def num_bytes(self) -> int:
        return sum(bucket.num_bytes() for bucket in self._buckets.values())

    def _capacity(self, num_tokens: int) -> int:
        capacity = SMALLEST
        while capacity < num_tokens:
            capacity *= 2
        return min(capacity, max(self.context, num_tokens))

    def _bucket(self, num_tokens: int) -> Bucket:
        return self._buckets.setdefault(self._capacity(num_tokens), Bucket(self._capacity(num_tokens)))


def mask_of(lengths_B: Tensor, longest: int, window: int | None, chunk: int | None = None) -> Tensor:
    """Attention mask bool [B, 1, 1, longest] of the newest token of each sequence: all tokens up to itself, the last
    `window` of them, or those of its chunk of `chunk` tokens."""
    position_L = torch.arange(longest, device=lengths_B.device)
    seen_BL = position_L < lengths_B[:, None]
    if window is not None:
        seen_BL = seen_BL & (position_L >= lengths_B[:, None] - window)
    if chunk is not None:
        seen_BL = seen_BL & (position_L // chunk == (lengths_B[:, None] - 1) // chunk)
    return seen_BL[:, None, None, :]
