"""Errors of the database and of disks that pass without a change of the program: no space, a lock, no connection."""

import errno

from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

_FULL = ("disk is full", "No space left")
"""Error messages of SQLite and PostgreSQL."""


def is_full(error: BaseException) -> bool:
    """Whether the disk of the files or of the database is full."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, DBAPIError) and any(message in str(error.orig) for message in _FULL)


def is_unavailable(error: BaseException) -> bool:
    """Whether the database is locked, read-only or unreachable. A missing table is an error of the program."""
    if isinstance(error, PoolTimeout):
        return True
    return isinstance(error, OperationalError) and "no such" not in str(error.orig)


def reason_of(error: DBAPIError) -> str:
    """The database's message, in one line."""
    lines = str(error.orig).strip().splitlines()
    return lines[0] if lines else "no response"
