"""Objects shared by all resources of the API: a page of a list, and the response to a delete request."""

from collections.abc import Sequence
from typing import Generic, Literal, TypedDict, TypeVar

Item = TypeVar("Item")


class ListPage(TypedDict, Generic[Item]):
    object: Literal["list"]
    data: Sequence[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(TypedDict):
    id: str
    object: str
    deleted: bool
