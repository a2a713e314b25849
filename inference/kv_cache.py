"""Keys and values of many sequences of unequal length, in buckets: a bucket holds sequences of up to one capacity.

A sequence that outgrows its bucket moves to the next one, of twice the capacity: memory is at most twice what the
tokens need, a token is copied once or twice in all, and one attention call serves a whole bucket without a copy of what
it holds. Sequences of a bucket lie close together: one that leaves is replaced by the last.

S slots of a bucket, C its capacity in tokens, K key-value heads, D size of a head, T tokens of a step.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

SMALLEST = 128
"""Tokens of the smallest bucket: most short chats never move."""
_MOST_SPARE = 8
"""Slots that a bucket grows by at most."""


@dataclass(eq=False)
class Slot:
    """Where a sequence's keys and values are. index: in its bucket. length: tokens that are held."""

    bucket: "Bucket"
    index: int
    length: int = 0


@dataclass(eq=False)
class Bucket:
    """slots: those in use. num_slots: those that there is memory for. layers: by layer number, keys and values
    [S, K, C, D], allocated when the layer first writes."""

    capacity: int
    slots: list[Slot] = field(default_factory=list)
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    num_slots: int = 0

    def layer(self, number: int, like_KTD: Tensor, value_KTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer; allocated for the shape, type and device of these where there are none."""
        if number not in self.layers:
            self.layers[number] = (
                like_KTD.new_zeros(self.num_slots, like_KTD.shape[0], self.capacity, like_KTD.shape[2]),
                value_KTD.new_zeros(self.num_slots, value_KTD.shape[0], self.capacity, value_KTD.shape[2]),
            )
        return self.layers[number]

    def add(self, slot: Slot) -> None:
        if len(self.slots) == self.num_slots:
            self._resize(max(1, min(2 * self.num_slots, self.num_slots + _MOST_SPARE)))
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
        elif self.num_slots - len(self.slots) >= 2 * _MOST_SPARE:
            self._resize(len(self.slots) + _MOST_SPARE)

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
    """All buckets of one model. context: tokens of a sequence at most."""

    def __init__(self, context: int):
        self.context = context
        self._buckets: dict[int, Bucket] = {}

    def open(self, num_tokens: int) -> Slot:
        """A slot for a sequence that will hold so many tokens soon."""
        bucket = self._bucket(num_tokens)
        slot = Slot(bucket, 0)
        bucket.add(slot)
        return slot

    def make_room(self, slot: Slot, num_tokens: int) -> None:
        """The sequence will hold so many tokens after the next step."""
        former = slot.bucket
        if num_tokens <= former.capacity:
            return
        bucket, index, length = self._bucket(num_tokens), slot.index, slot.length
        held = {
            number: (keys[index, :, :length].clone(), values[index, :, :length].clone())
            for number, (keys, values) in former.layers.items()
        }
        former.remove(slot)
        bucket.add(slot)
        for number, (keys, values) in held.items():
            to_keys, to_values = bucket.layer(number, keys, values)
            to_keys[slot.index, :, :length], to_values[slot.index, :, :length] = keys, values

    def close(self, slot: Slot) -> None:
        slot.bucket.remove(slot)

    def reserved_tokens(self) -> int:
        """Tokens that there is memory for."""
        return sum(bucket.num_slots * bucket.capacity for bucket in self._buckets.values())

    def would_reserve(self, num_tokens: int) -> int:
        """What one more slot for so many tokens adds to it."""
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


def mask_of(lengths_B: Tensor, longest: int, window: int | None) -> Tensor:
    """bool [B, 1, 1, longest]: what the newest token of each sequence sees: all tokens up to itself, or the last
    `window` of them."""
    position_L = torch.arange(longest, device=lengths_B.device)
    seen_BL = position_L < lengths_B[:, None]
    if window is not None:
        seen_BL = seen_BL & (position_L >= lengths_B[:, None] - window)
    return seen_BL[:, None, None, :]
