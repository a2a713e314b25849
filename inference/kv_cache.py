"""Keys and values of many sequences of unequal length, on shelves: a shelf holds sequences of up to one capacity.

A sequence that outgrows its shelf moves to the next one, of twice the capacity: memory is at most twice what the tokens
need, a copy of each token is made once or twice in its life, and one attention call serves a whole shelf without a
copy of what it holds. Sequences of a shelf lie close together: one that leaves is replaced by the last.

S places of a shelf, C its capacity in tokens, K key-value heads, D size of a head, T tokens of a step.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

SMALLEST = 128
"""Tokens of the smallest shelf: most short chats never move."""
_MOST_SPARE = 8
"""Places that a shelf grows by at most."""


@dataclass(eq=False)
class Place:
    """Where a sequence's keys and values stand. length: tokens that are held."""

    shelf: "Shelf"
    slot: int
    length: int = 0


@dataclass(eq=False)
class Shelf:
    """layers: by layer number, keys and values [S, K, C, D], made when the layer first writes."""

    capacity: int
    places: list[Place] = field(default_factory=list)
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    num_slots: int = 0

    def layer(self, number: int, like_KTD: Tensor, value_KTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer; made for the shape, type and device of these where there are none."""
        if number not in self.layers:
            self.layers[number] = (
                like_KTD.new_zeros(self.num_slots, like_KTD.shape[0], self.capacity, like_KTD.shape[2]),
                value_KTD.new_zeros(self.num_slots, value_KTD.shape[0], self.capacity, value_KTD.shape[2]),
            )
        return self.layers[number]

    def add(self, place: Place) -> None:
        if len(self.places) == self.num_slots:
            self._resize(max(1, min(2 * self.num_slots, self.num_slots + _MOST_SPARE)))
        place.shelf, place.slot = self, len(self.places)
        self.places.append(place)

    def remove(self, place: Place) -> None:
        last = self.places.pop()
        if last is not place:
            for tensor in self._tensors():
                tensor[place.slot, :, : last.length] = tensor[last.slot, :, : last.length]
            last.slot = place.slot
            self.places[place.slot] = last
        if not self.places:
            self.layers, self.num_slots = {}, 0
        elif self.num_slots - len(self.places) >= 2 * _MOST_SPARE:
            self._resize(len(self.places) + _MOST_SPARE)

    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors())

    def _tensors(self) -> list[Tensor]:
        return [tensor for pair in self.layers.values() for tensor in pair]

    def _resize(self, num_slots: int) -> None:
        for number, pair in self.layers.items():
            grown = []
            for tensor in pair:
                wider = tensor.new_zeros(num_slots, *tensor.shape[1:])
                kept = min(num_slots, self.num_slots)
                wider[:kept] = tensor[:kept]
                grown.append(wider)
            self.layers[number] = (grown[0], grown[1])
        self.num_slots = num_slots


class Cache:
    """All shelves of one base. context: most tokens that a sequence may have."""

    def __init__(self, context: int):
        self.context = context
        self._shelves: dict[int, Shelf] = {}

    def open(self, num_tokens: int) -> Place:
        """A place for a sequence that will hold so many tokens soon."""
        shelf = self._shelf(num_tokens)
        place = Place(shelf, 0)
        shelf.add(place)
        return place

    def make_room(self, place: Place, num_tokens: int) -> None:
        """The sequence will hold so many tokens after the next step."""
        former = place.shelf
        if num_tokens <= former.capacity:
            return
        shelf, slot, length = self._shelf(num_tokens), place.slot, place.length
        held = {
            number: (keys[slot, :, :length].clone(), values[slot, :, :length].clone())
            for number, (keys, values) in former.layers.items()
        }
        former.remove(place)
        shelf.add(place)
        for number, (keys, values) in held.items():
            to_keys, to_values = shelf.layer(number, keys, values)
            to_keys[place.slot, :, :length], to_values[place.slot, :, :length] = keys, values

    def close(self, place: Place) -> None:
        place.shelf.remove(place)

    def reserved_tokens(self) -> int:
        """Tokens that the places could hold: what memory follows."""
        return sum(shelf.num_slots * shelf.capacity for shelf in self._shelves.values())

    def would_reserve(self, num_tokens: int) -> int:
        """What one more place for so many tokens adds to it."""
        return self._capacity(num_tokens)

    def num_bytes(self) -> int:
        return sum(shelf.num_bytes() for shelf in self._shelves.values())

    def _capacity(self, num_tokens: int) -> int:
        capacity = SMALLEST
        while capacity < num_tokens:
            capacity *= 2
        return min(capacity, max(self.context, num_tokens))

    def _shelf(self, num_tokens: int) -> Shelf:
        return self._shelves.setdefault(self._capacity(num_tokens), Shelf(self._capacity(num_tokens)))


def mask_of(lengths_B: Tensor, longest: int, window: int | None) -> Tensor:
    """bool [B, 1, 1, longest]: what the newest token of each sequence sees: all tokens up to itself, or the last
    `window` of them."""
    position_L = torch.arange(longest, device=lengths_B.device)
    seen_BL = position_L < lengths_B[:, None]
    if window is not None:
        seen_BL = seen_BL & (position_L >= lengths_B[:, None] - window)
    return seen_BL[:, None, None, :]
