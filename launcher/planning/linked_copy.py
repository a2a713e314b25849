"""Copies of base models in the cache that link to most of their files."""

from collections.abc import Callable
from pathlib import Path

from tunesmith.errors import RunFault
from tunesmith.modeling.base_model.derived import written_once
from tunesmith.os_errors import remedy_for


def linked_copy(final: Path, write: Callable[[Path], None], what: str) -> Path:
    """Return the directory `final`, written by `write` if it does not exist yet or a link in it is broken.

    write: creates the directory that it is called with. what: how the copy differs from the base model, for the
    message. RunFault if it cannot be written.
    """
    try:
        return written_once(final, write, _is_complete)
    except OSError as error:
        raise RunFault(
            f"the copy of the base model {what} could not be written: {error.strerror or error}",
            where=str(error.filename or final),
            remedy=remedy_for(error, "free disk space, or set TUNESMITH_CACHE to a directory on another disk"),
        ) from error


def _is_complete(directory: Path) -> bool:
    return (directory / "config.json").is_file() and all(path.exists() for path in directory.iterdir())
