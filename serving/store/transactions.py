"""What the tables' files ask of the store that holds them, and pieces of statements that they share."""

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
    """Rows of a list, and whether there are more behind them."""

    rows: list[Row]
    has_more: bool


def take(
    session: Session, query: Select[Any], table: Any, after: Any | None, limit: int, *, newest_first: bool
) -> Slice[Any]:
    """Rows behind the row `after` in the order of (created_at, sequence): stable while rows arrive."""
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
    """One transaction at a time beyond this point, until it ends. SQLite has one writer anyhow."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": f"tunesmith {name}"})


def changed(session: Session, statement: Update | Delete) -> int:
    """How many rows the statement changed."""
    result = session.execute(statement)
    assert isinstance(result, CursorResult)
    return result.rowcount
