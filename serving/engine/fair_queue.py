"""Who is next: one caller with many requests does not keep the others waiting."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    @property
    def caller(self) -> str: ...


Item = TypeVar("Item", bound=Waiting)


class FairQueue(Generic[Item]):
    """Within a caller the order is that of arrival; between callers, whose turn was longest ago is next."""

    def __init__(self) -> None:
        self._callers: OrderedDict[str, deque[Item]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._callers.values()))

    def __iter__(self) -> Iterator[Item]:
        return (item for items in self._callers.values() for item in items)

    def add(self, item: Item) -> None:
        self._callers.setdefault(item.caller, deque()).append(item)

    def put_back(self, item: Item) -> None:
        """In front of all others of its caller, whose turn it is: it had a place and lost it."""
        self._callers.setdefault(item.caller, deque()).appendleft(item)
        self._callers.move_to_end(item.caller, last=False)

    def next(self, fits: Callable[[Item], bool]) -> Item | None:
        """Takes out the next one. Where the one whose turn it is does not fit, nobody overtakes it: a large request
        would wait for ever."""
        for caller, items in self._callers.items():
            if not fits(items[0]):
                return None
            item = items.popleft()
            self._callers.move_to_end(caller)
            if not items:
                del self._callers[caller]
            return item
        return None

    def remove(self, unwanted: Callable[[Item], bool]) -> list[Item]:
        """Takes out all of a kind."""
        removed = [item for item in self if unwanted(item)]
        for caller in list(self._callers):
            kept = deque(item for item in self._callers[caller] if not unwanted(item))
            if kept:
                self._callers[caller] = kept
            else:
                del self._callers[caller]
        return removed
