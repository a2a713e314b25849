"""Cursor pagination as in the `openai` package: `after=<last id of the page>` until `has_more` is false."""

from collections.abc import Callable, Iterable
from typing import TypedDict, TypeVar

from tunesmith.serving.errors import ApiError
from tunesmith.serving.objects.list_page import ListPage
from tunesmith.serving.store.transactions import Slice


class Identified(TypedDict):
    id: str


Row = TypeVar("Row")
Item = TypeVar("Item", bound=Identified)


def page(rows: Slice[Row], to_object: Callable[[Row], Item]) -> ListPage[Item]:
    return page_of([to_object(row) for row in rows.rows], rows.has_more)


def page_of(objects: Iterable[Item], has_more: bool = False) -> ListPage[Item]:
    data = list(objects)
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more}


def cursor(after: str | None, find: Callable[[str], Row | None]) -> Row | None:
    """The row after which a page starts; None for the first page. Raises ApiError if there is no such row."""
    if after is None:
        return None
    if (row := find(after)) is None:
        raise ApiError(f"No object in this list has the id {after[:80]!r}", param="after")
    return row


def limit_of(limit: int, largest: int) -> int:
    """Return the limit. Raises ApiError if it is out of bounds."""
    if not 1 <= limit <= largest:
        raise ApiError(f"limit must be between 1 and {largest}", param="limit")
    return limit
