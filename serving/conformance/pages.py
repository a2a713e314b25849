"""Pagination with protection against endless lists."""

from collections.abc import Iterable
from typing import Any, TypeVar

from tunesmith.serving.conformance.outcome import Broken

Item = TypeVar("Item", bound=Any)


def paged(items: Iterable[Item]) -> list[Item]:
    """All items of all pages. Raises Broken if an id appears twice: then `after` is not exclusive, or is ignored, and
    the pages might never end."""
    seen: dict[str, Item] = {}
    for item in items:
        if item.id in seen:
            raise Broken(f"{item.id} appears twice in a paginated list")
        seen[item.id] = item
    return list(seen.values())
