"""What an error of the operating system means for a user: one table for every program of Tunesmith."""

import errno
import os
from pathlib import Path

from tunesmith.errors import RunFault

_MESSAGES = {
    errno.ENOSPC: ("the disk is full", "free space there, then run the same command again"),
    errno.EDQUOT: ("the disk quota is exceeded", "free space there, then run the same command again"),
    errno.EFBIG: ("the file is larger than allowed", "raise the limit (ulimit -f), or choose another file system"),
    errno.EROFS: ("the file system is read-only", "choose a writable directory"),
    errno.EACCES: ("permission denied", "check the permissions of the file"),
    errno.EPERM: ("operation not permitted", "check the permissions of the file"),
    errno.EIO: ("the disk failed (I/O error)", "check the disk, then run the same command again"),
    errno.ESTALE: ("the network file system lost the file", "check the mount, then run the same command again"),
    errno.EMFILE: ("too many open files", "raise the limit (ulimit -n), then run the same command again"),
    errno.ENFILE: ("too many open files on this machine", "close other programs, then run the same command again"),
    errno.ENAMETOOLONG: ("the file name is too long", "choose a shorter name"),
    errno.ENOMEM: ("out of memory", "close other programs, then run the same command again"),
}
"""errno: the message and what to do."""


_OWN_REMEDY = {errno.EMFILE, errno.ENFILE, errno.EFBIG, errno.ENOMEM, errno.ENAMETOOLONG, errno.EIO, errno.ESTALE}
"""Errors that another directory or more free space does not remedy."""


def remedy_for(error: OSError, otherwise: str) -> str:
    """Return what to do about an error with a remedy of its own, such as too many open files; else the caller's."""
    return _MESSAGES[error.errno][1] if error.errno in _OWN_REMEDY else otherwise


def os_fault(error: BaseException, directory: Path | None = None) -> RunFault | None:
    """Return the error for the user; None if it is not an error of the operating system that the table knows.

    directory: where the program writes, named if the error itself does not name a file.
    """
    if isinstance(error, MemoryError):
        what, remedy = _MESSAGES[errno.ENOMEM]
        return RunFault(what, where=str(directory or os.getcwd()), remedy=remedy)
    if not isinstance(error, OSError) or error.errno not in _MESSAGES:
        return None
    what, remedy = _MESSAGES[error.errno]
    place = str(error.filename or directory or error.strerror)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        place += free_space(Path(place))
    return RunFault(what, where=place, remedy=remedy)


def free_space(path: Path) -> str:
    """` (N bytes free)` of the file system of a path or of its nearest existing parent; empty if unknown."""
    num_bytes = _free_bytes(path)
    return "" if num_bytes is None else f" ({num_bytes:,} bytes free)"


def is_full(path: Path) -> bool:
    """Whether less than 64 KiB are free on the file system of a path: too little for any file of a run."""
    num_bytes = _free_bytes(path)
    return num_bytes is not None and num_bytes < 64 << 10


def _free_bytes(path: Path) -> int | None:
    for candidate in (path, *path.parents):
        try:
            space = os.statvfs(candidate)
        except OSError:
            continue
        return space.f_bavail * space.f_frsize
    return None
