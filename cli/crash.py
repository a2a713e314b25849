"""The error message of an unhandled exception: a full disk or the like, otherwise a bug in Tunesmith."""

import errno
import os
import tempfile
import time
import traceback
from pathlib import Path

from tunesmith import __version__
from tunesmith.data.cache import cache_root

DISK = {
    errno.ENOSPC: ("the disk is full", "free space there, then run the same command again"),
    errno.EDQUOT: ("the disk quota is exceeded", "free space there, then run the same command again"),
    errno.EROFS: ("the file system is read-only", "choose a writable directory"),
    errno.EACCES: ("permission denied", "check the permissions of the file"),
    errno.EPERM: ("operation not permitted", "check the permissions of the file"),
    errno.EIO: ("the disk failed (I/O error)", "check the disk, then run the same command again"),
    errno.EMFILE: ("too many open files", "raise the limit (ulimit -n), then run the same command again"),
}
"""errno: the message and what to do."""


def describe_crash(error: BaseException) -> str:
    """Return the error message; write the traceback to a log file, unless the error is one of `DISK`."""
    if isinstance(error, OSError) and error.errno in DISK:
        what, remedy = DISK[error.errno]
        return f"{what}\n  where:      {error.filename or error.strerror}\n  what to do: {remedy}"
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
    path = _write("".join(traceback.format_exception(error)))
    return (
        f"unexpected error in Tunesmith {__version__}: {type(error).__name__}: {error}\n"
        f"  where:      {where}\n"
        f"  what to do: see the traceback in {path}; a run that had started can be resumed"
    )


def _write(text: str) -> str:
    name = f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    for folder in (lambda: cache_root() / "crashes", lambda: Path(tempfile.gettempdir())):
        try:
            path = folder() / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return str(path)
        except (OSError, RuntimeError):  # no home directory, a full disk
            continue
    return "(no log file could be written)"
