"""What a user is told of an exception that nobody foresaw: one line, and where the rest lies."""

import os
import tempfile
import time
import traceback
from pathlib import Path

from tunesmith import __version__
from tunesmith.data.cache import cache_root


def describe_crash(error: BaseException) -> str:
    """Write the traceback to a file of its own; the message that names it."""
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
