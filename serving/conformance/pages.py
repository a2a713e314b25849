"""Lists as the client pages through them, to an end even where the server gives none."""

from collections.abc import Iterable
from typing import Any, TypeVar

from tunesmith.serving.conformance.outcome import Broken

Thing = TypeVar("Thing", bound=Any)


def paged(things: Iterable[Thing]) -> list[Thing]:
    """All of them, page behind page. Raises Broken where an id comes twice: then `after` is not exclusive, or is not
    looked at, and the pages may never end."""
    seen: dict[str, Thing] = {}
    for thing in things:
        if thing.id in seen:
            raise Broken(f"{thing.id} stands twice in a list that is paged through")
        seen[thing.id] = thing
    return list(seen.values())
