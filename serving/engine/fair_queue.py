"""Fair queue: a caller with many requests does not delay the others."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    @property
    def caller(self) -> str: ...


Item = TypeVar("Item", bound=Waiting)


class FairQueue(Generic[Item]):
    """Round robin between callers; first in, first out within a caller."""

    def __init__(self) -> None:
        self._callers: OrderedDict[str, deque[Item]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._callers.values()))

    def __iter__(self) -> Iterator[Item]:
        return (item for items in self._callers.values() for item in items)

    def add(self, item: Item) -> None:
        self._callers.setdefault(item.caller, deque()).append(item)

    def put_back(self, item: Item) -> None:
        """Return a preempted item to the front of its caller's queue, and its caller to the front."""
        self._callers.setdefault(item.caller, deque()).appendleft(item)
        self._callers.move_to_end(item.caller, last=False)

    def next(self, fits: Callable[[Item], bool]) -> Item | None:
        """Remove and return the next item. Returns None if it does not fit: no item overtakes it, so that large
        requests do not starve."""
        for caller, items in self._callers.items():
            if not fits(items[0]):
                return None
            item = items.popleft()
            self._callers.move_to_end(caller)
            if not items:
                del self._callers[caller]
            return item
        return None

    def remove(self, matches: Callable[[Item], bool]) -> list[Item]:
        """Remove and return all matching items."""
        removed = [item for item in self if matches(item)]
        for caller in list(self._callers):
            kept = deque(item for item in self._callers[caller] if not matches(item))
            if kept:
                self._callers[caller] = kept
            else:
                del self._callers[caller]
        return removed
