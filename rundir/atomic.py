"""Atomic file writes: neither a reader nor a crash ever sees a partial file."""

import json
import os
import threading
from pathlib import Path
from typing import Any


def fsync_directory(directory: Path) -> None:
    """Make the entries of a directory durable: a rename is on disk only once its parent is synced."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` with `content` atomically: temporary file, fsync, rename, fsync of the parent.

    Creates the parent, but not the parents of that: a directory that was deleted with its run is not created again.
    """
    path.parent.mkdir(exist_ok=True)
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path.parent)


def temporary_name(path: Path) -> Path:
    """A name in the directory of `path` that no other process or thread uses."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
