"""What was prepared before, kept by its content: a thing is built once, whole, and verified before it is used again."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tunesmith.errors import InputError, RunFault
from tunesmith.rundir.commit import committed_directory, verify


def cache_root() -> Path:
    """$TUNESMITH_CACHE, or ~/.cache/tunesmith. Everything in it can be made again; it may be deleted at any time when
    no run needs it."""
    return Path(os.environ.get("TUNESMITH_CACHE") or "~/.cache/tunesmith").expanduser()


def build_once(final: Path, write: Callable[[Path], None]) -> Path:
    """The committed directory `final`, built by `write(temporary directory)` where there is none or it is damaged.

    Every byte of one that is there is verified. Two processes that want the same wait for each other.
    Raises InputError where the cache may not be written, RunFault where the disk refuses.
    """
    try:
        with _only_one(final):
            if final.is_dir() and verify(final) is None:
                return final
            # One attempt number is enough: the lock keeps others out, and what a killed one left is removed.
            with committed_directory(final, 0) as temporary:
                write(temporary)
            return final
    except PermissionError as error:
        raise InputError(
            f"the cache cannot be written: {error.strerror}",
            where=str(error.filename or final),
            remedy="set TUNESMITH_CACHE to a directory of your own",
        ) from error
    except OSError as error:
        raise RunFault(
            f"the cache cannot be written: {error.strerror or error}",
            where=str(error.filename or final),
            remedy="free space on this disk, or set TUNESMITH_CACHE to a directory on another",
        ) from error


@contextmanager
def _only_one(final: Path) -> Iterator[None]:
    """Hold the lock of a cache entry. 256 lock files a folder, so that they do not pile up."""
    locks = final.parent / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    fd = os.open(locks / final.name[:2], os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
