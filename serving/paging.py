"""Lists as the `openai` package pages through them: `after=<the last id seen>` until `has_more` is false."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

from tunesmith.serving.errors import ApiError

Row = TypeVar("Row")


class Listed(Protocol):
    @property
    def rows(self) -> list[Any]: ...

    @property
    def has_more(self) -> bool: ...


def page(listed: Listed, as_json: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    return page_of([as_json(row) for row in listed.rows], listed.has_more)


def page_of(objects: Iterable[dict[str, Any]], has_more: bool = False) -> dict[str, Any]:
    data = list(objects)
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more}


def cursor(after: str | None, find: Callable[[str], Row | None]) -> Row | None:
    """The row that a list goes on behind; None for the start. Raises ApiError where there is no such row."""
    if after is None:
        return None
    if (row := find(after)) is None:
        raise ApiError(f"Nothing in this list has the id {after[:80]!r}", param="after")
    return row


def limit_of(limit: int, largest: int) -> int:
    """Raises ApiError where a limit is out of bounds."""
    if not 1 <= limit <= largest:
        raise ApiError(f"limit must be between 1 and {largest}", param="limit")
    return limit
