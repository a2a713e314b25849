"""What a user is told of an exception that no room turned into words: a full disk, or a fault of ours."""

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
    errno.EDQUOT: ("the quota of the disk is used up", "free space there, then run the same command again"),
    errno.EROFS: ("the disk is read-only", "choose a place that can be written"),
    errno.EACCES: ("the file may not be read or written", "check its permissions"),
    errno.EPERM: ("the file may not be read or written", "check its permissions"),
    errno.EIO: ("the disk failed", "check the disk, then run the same command again"),
    errno.EMFILE: ("too many files are open", "raise the limit (ulimit -n), then run the same command again"),
}
"""What the system says, in words, and what to do."""


def describe_crash(error: BaseException) -> str:
    """The message; the traceback goes to a file of its own, unless the disk or the rights are the whole story."""
    if isinstance(error, OSError) and error.errno in DISK:
        what, remedy = DISK[error.errno]
        return f"{what}\n  where:      {error.filename or error.strerror}\n  what to do: {remedy}"
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
    path = _write("".join(traceback.format_exception(error)))
    return (
        f"something that Tunesmith {__version__} did not expect: {type(error).__name__}: {error}\n"
        f"  where:      {where}\n"
        f"  what to do: the traceback is in {path}; a run that had begun can be resumed"
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
    return "no file, since none could be written"
