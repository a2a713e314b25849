"""The error message of an unhandled exception: a full disk or the like, otherwise a bug in Tunesmith."""

import os
import tempfile
import time
import traceback
from pathlib import Path

from tunesmith import __version__
from tunesmith.data.cache import cache_root
from tunesmith.os_errors import os_fault


def describe_crash(error: BaseException) -> str:
    """Return the error message; write the traceback to a log file, unless the operating system explains the error."""
    if (fault := os_fault(error)) is not None:
        return str(fault)
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
