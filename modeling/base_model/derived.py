"""Models that are computed from others on first use and kept in the cache: written in a process of its own, so that its
memory is released and torch is not imported here."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tunesmith.errors import ExitCode, TunesmithError

Failure = Callable[[str, bool], TunesmithError]
"""Returns the error of a failed process: from its message, and whether that is the message of an InputError."""


def derived_model(final: Path, module: str, sources: list[Path], *, memory: str, failure: Failure) -> Path:
    """Return the directory `final`, written by `python -m MODULE SOURCES... DIRECTORY` if it does not exist yet.

    The directory appears when it is complete; processes that write it at the same time do not disturb each other.
    memory: what the process needs, for the message if it is killed. Raises the error that `failure` returns.
    """

    def write(target: Path) -> None:
        command = [sys.executable, "-m", module, *map(str, sources), str(target)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            lines = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
            is_input = ended.returncode == ExitCode.BAD_INPUT
            what = "\n".join(lines) if is_input else lines[-1]
            if ended.returncode < 0:  # usually because the machine ran out of memory
                what = f"killed by signal {-ended.returncode}; {memory}"
            raise failure(what, is_input)

    return written_once(final, write, lambda directory: (directory / "config.json").is_file())


def written_once(final: Path, write: Callable[[Path], None], is_complete: Callable[[Path], bool]) -> Path:
    """Return the directory `final`, written by `write` if it is not complete yet.

    It appears when it is complete; processes that write it at the same time do not disturb each other. write: creates
    the directory that it is called with.
    """
    if is_complete(final):
        return final
    temporary = final.with_name(f"{final.name}.tmp.{os.getpid()}")
    final.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        write(temporary)
        if not is_complete(final):  # another process may have written it meanwhile
            shutil.rmtree(final, ignore_errors=True)
        try:
            temporary.rename(final)
        except OSError:
            if not is_complete(final):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final
