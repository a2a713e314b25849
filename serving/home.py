"""The server's directory: what it keeps of uploads, jobs and requests is readable by its own user only."""

import logging
import stat
from pathlib import Path

from tunesmith.errors import InputError

DIRECTORIES = ("jobs", "runs", "files", "logs")
"""Directories of a home with rows of users or their traces: copies of uploaded files, runs with receipts and token
indices, uploads, audit logs."""
DATABASE = "store.sqlite3*"
_PRIVATE_DIRECTORY, _PRIVATE_FILE = 0o700, 0o600
_log = logging.getLogger("tunesmith.serving")


def open_home(home: Path) -> None:
    """Create the directory if it does not exist, and make everything in it that belongs to the server private.

    A home that existed before keeps its mode: it may hold other things. Raises InputError if its content cannot be made
    private.
    """
    home.mkdir(parents=True, exist_ok=True, mode=_PRIVATE_DIRECTORY)
    for name in DIRECTORIES:
        (home / name).mkdir(exist_ok=True, mode=_PRIVATE_DIRECTORY)
        _make_private(home / name, _PRIVATE_DIRECTORY)
    for path in home.glob(DATABASE):
        _make_private(path, _PRIVATE_FILE)


def _make_private(path: Path, mode: int) -> None:
    before = stat.S_IMODE(path.stat().st_mode)
    if not before & ~mode:
        return
    try:
        path.chmod(before & mode)
    except OSError as error:
        raise InputError(
            f"other users can read this part of the server's home, and its mode cannot be changed: {error.strerror}",
            where=f"{path}, mode {before:03o}",
            remedy=f"run the server as its owner, or `chmod {before & mode:03o}` it",
        ) from None
    _log.warning("%s was accessible to other users (mode %03o); now its mode is %03o", path, before, before & mode)
