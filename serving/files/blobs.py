"""Uploaded bytes: in a directory, or below any URL of fsspec. Names are ids that the server made, never a caller's."""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import fsspec

from tunesmith.rundir.atomic import fsync_directory
from tunesmith.serving.names import is_id, random_text

INCOMING = ".incoming"
CHUNK = 1 << 20


class Blobs:
    """Bytes by name. Half-written ones carry another name and are never seen under the final one."""

    def __init__(self, url: str):
        self.fs: Any
        self.fs, root = fsspec.core.url_to_fs(url)
        self.root = str(root).rstrip("/")
        self.is_local = "file" in self.fs.protocol
        self.fs.makedirs(f"{self.root}/{INCOMING}", exist_ok=True)
        if self.is_local:
            Path(self.root).chmod(0o700)

    def path(self, name: str) -> str:
        if not is_id(name):
            raise ValueError(f"{name!r} is no id")
        return f"{self.root}/{name}"

    def _incoming(self, name: str) -> str:
        return f"{self.root}/{INCOMING}/{Path(self.path(name)).name}"

    def writer(self, name: str) -> "Writer":
        return Writer(self, self._incoming(name), self.path(name))

    @contextlib.contextmanager
    def writing(self, name: str) -> "Iterator[Writer]":
        """A file to write to: under its name once the block ends, gone where an exception ends it."""
        writer = self.writer(name)
        try:
            yield writer
            writer.commit()
        finally:
            writer.abandon()

    def open(self, name: str) -> IO[bytes]:
        """Raises FileNotFoundError."""
        return self.fs.open(self.path(name), "rb")

    def pieces(self, name: str) -> Iterator[bytes]:
        """The bytes, a mebibyte at a time. Raises FileNotFoundError before the first."""
        with self.open(name) as file:
            while piece := file.read(CHUNK):
                yield piece

    def write(self, name: str, content: bytes) -> None:
        with self.writing(name) as file:
            file.write(content)

    def local_copy(self, name: str, to: Path) -> None:
        """The bytes as a local file, whole or not at all, also where two copy at once."""
        to.parent.mkdir(parents=True, exist_ok=True)
        temporary = to.with_name(f".{to.name}.{random_text(8)}")
        try:
            with self.open(name) as source, open(temporary, "wb") as target:
                shutil.copyfileobj(source, target, CHUNK)
            temporary.replace(to)
        finally:
            temporary.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Gone afterwards, also where it was gone before."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    def sweep(self, known: set[str], older_than_s: float) -> list[str]:
        """Delete bytes that nothing names and half-written ones, where they are older than this. Returns their names.

        A server that was killed in the middle of an upload leaves such bytes behind.
        """
        gone = []
        for folder in (self.root, f"{self.root}/{INCOMING}"):
            for entry in self.fs.ls(folder, detail=True):
                name = str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]
                if entry["type"] != "file" or not is_id(name) or (folder == self.root and name in known):
                    continue
                if _age_s(entry) >= older_than_s:
                    self.fs.rm_file(str(entry["name"]))
                    gone.append(name)
        return gone


class Writer:
    """Bytes on their way in. `commit` gives them their name; `abandon` leaves nothing, but what was committed stays."""

    def __init__(self, blobs: Blobs, incoming: str, final: str):
        self._blobs, self._incoming, self._final = blobs, incoming, final
        self._file: Any = blobs.fs.open(incoming, "wb")
        self._committed = False

    def write(self, piece: bytes) -> None:
        self._file.write(piece)

    def commit(self) -> None:
        if self._blobs.is_local:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        self._blobs.fs.mv(self._incoming, self._final)
        self._committed = True
        if self._blobs.is_local:
            fsync_directory(Path(self._blobs.root))

    def abandon(self) -> None:
        if self._committed:
            return
        for act in (self._file.close, lambda: self._blobs.fs.rm_file(self._incoming)):
            with contextlib.suppress(Exception):
                act()


def _age_s(entry: Mapping[str, object]) -> float:
    """Since the last change; 0 where the file system does not tell: then it stays."""
    changed = entry.get("mtime") or entry.get("LastModified") or entry.get("created")
    if isinstance(changed, datetime):
        changed = changed.timestamp()
    return time.time() - changed if isinstance(changed, (int, float)) else 0.0
