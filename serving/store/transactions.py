"""The transaction interface of the store, and statements shared by its tables."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy import CursorResult, Delete, Select, Update, and_, or_, text
from sqlalchemy.orm import Session

Row = TypeVar("Row")


class Transactions(Protocol):
    def begin(self, session: Session | None = None) -> AbstractContextManager[Session]: ...

    def read(self, session: Session | None = None) -> AbstractContextManager[Session]: ...


@dataclass(frozen=True)
class Slice(Generic[Row]):
    """A page of rows, and whether more follow."""

    rows: list[Row]
    has_more: bool


def take(
    session: Session, query: Select[Any], table: Any, after: Any | None, limit: int, *, newest_first: bool
) -> Slice[Any]:
    """A page of rows starting after `after`, ordered by (created_at, sequence): stable while rows are inserted."""
    columns = table.created_at, table.sequence
    if after is not None:
        created, sequence = columns
        if newest_first:
            query = query.where(
                or_(created < after.created_at, and_(created == after.created_at, sequence < after.sequence))
            )
        else:
            query = query.where(
                or_(created > after.created_at, and_(created == after.created_at, sequence > after.sequence))
            )
    query = query.order_by(*(column.desc() if newest_first else column.asc() for column in columns))
    rows = list(session.scalars(query.limit(limit + 1)))
    return Slice(rows[:limit], len(rows) > limit)


def lock(session: Session, name: str) -> None:
    """Acquire a named lock until the transaction ends. SQLite does not need it: it has a single writer."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": f"tunesmith {name}"})


def changed(session: Session, statement: Update | Delete) -> int:
    """Execute a statement; returns the number of rows it changed."""
    result = session.execute(statement)
    assert isinstance(result, CursorResult)
    return result.rowcount
