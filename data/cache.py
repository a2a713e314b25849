"""Content-addressed cache: each entry is built once, committed atomically, and verified before reuse."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tunesmith.errors import InputError, RunFault
from tunesmith.os_errors import remedy_for
from tunesmith.rundir.commit import committed_directory, verify


def cache_root() -> Path:
    """Return $TUNESMITH_CACHE, or ~/.cache/tunesmith. Everything in it can be rebuilt; it may be deleted while no run
    uses it."""
    return Path(os.environ.get("TUNESMITH_CACHE") or "~/.cache/tunesmith").expanduser()


def build_once(final: Path, write: Callable[[Path], None]) -> Path:
    """Return the committed directory `final`, built by `write(temporary directory)` if it is missing or damaged.

    Every byte of an existing entry is verified. Processes that build the same entry wait for each other.
    Raises InputError if the cache is not writable, RunFault if writing fails.
    """
    try:
        with _entry_lock(final):
            if final.is_dir() and verify(final) is None:
                return final
            # One attempt number is enough: the lock excludes other builders, and leftovers of a killed one are removed.
            with committed_directory(final, 0) as temporary:
                write(temporary)
            return final
    except PermissionError as error:
        raise InputError(
            f"the cache cannot be written: {error.strerror}",
            where=str(error.filename or final),
            remedy="set TUNESMITH_CACHE to a writable directory",
        ) from error
    except OSError as error:
        raise RunFault(
            f"the cache cannot be written: {error.strerror or error}",
            where=str(error.filename or final),
            remedy=remedy_for(error, "free up disk space, or set TUNESMITH_CACHE to a directory on another disk"),
        ) from error


@contextmanager
def _entry_lock(final: Path) -> Iterator[None]:
    """Hold the lock of a cache entry. At most 256 lock files per directory, shared by all entries."""
    locks = final.parent / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    fd = os.open(locks / final.name[:2], os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
