"""Content of uploaded files, in a directory or under an fsspec URL. Names are ids of the server, never user input."""

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
CHUNK_BYTES = 1 << 20


class Blobs:
    """Blobs by name. A blob is written to a separate directory and moved to its final name when complete."""

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
            raise ValueError(f"{name!r} is not an id")
        return f"{self.root}/{name}"

    def _incoming(self, name: str) -> str:
        return f"{self.root}/{INCOMING}/{Path(self.path(name)).name}"

    def writer(self, name: str) -> "Writer":
        return Writer(self, self._incoming(name), self.path(name))

    @contextlib.contextmanager
    def writing(self, name: str) -> "Iterator[Writer]":
        """A writer that is committed when the block ends and discarded on an exception."""
        writer = self.writer(name)
        try:
            yield writer
            writer.commit()
        finally:
            writer.discard()

    def open(self, name: str) -> IO[bytes]:
        """Raises FileNotFoundError."""
        return self.fs.open(self.path(name), "rb")

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield the content in chunks of 1 MiB. Raises FileNotFoundError before the first."""
        with self.open(name) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def write(self, name: str, content: bytes) -> None:
        with self.writing(name) as file:
            file.write(content)

    def local_copy(self, name: str, to: Path) -> None:
        """Copy a blob to a local file, atomically; concurrent copies are safe."""
        to.parent.mkdir(parents=True, exist_ok=True)
        temporary = to.with_name(f".{to.name}.{random_text(8)}")
        try:
            with self.open(name) as source, open(temporary, "wb") as target:
                shutil.copyfileobj(source, target, CHUNK_BYTES)
            temporary.replace(to)
        finally:
            temporary.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Delete a blob; no error if it does not exist."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    def sweep(self, known: set[str], older_than_s: float) -> list[str]:
        """Delete unreferenced and incomplete blobs older than `older_than_s`. Returns their names.

        A server that is killed during an upload leaves such blobs. known: the referenced names.
        """
        deleted = []
        for folder in (self.root, f"{self.root}/{INCOMING}"):
            for entry in self.fs.ls(folder, detail=True):
                name = str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]
                if entry["type"] != "file" or not is_id(name) or (folder == self.root and name in known):
                    continue
                if _age_s(entry) >= older_than_s:
                    self.fs.rm_file(str(entry["name"]))
                    deleted.append(name)
        return deleted


class Writer:
    """Writes a blob. `commit` makes it visible under its name; `discard` deletes it unless it was committed."""

    def __init__(self, blobs: Blobs, incoming: str, final: str):
        self._blobs, self._incoming, self._final = blobs, incoming, final
        self._file: Any = blobs.fs.open(incoming, "wb")
        self._committed = False

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)

    def commit(self) -> None:
        if self._blobs.is_local:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        self._blobs.fs.mv(self._incoming, self._final)
        self._committed = True
        if self._blobs.is_local:
            fsync_directory(Path(self._blobs.root))

    def discard(self) -> None:
        if self._committed:
            return
        for action in (self._file.close, lambda: self._blobs.fs.rm_file(self._incoming)):
            with contextlib.suppress(Exception):
                action()


def _age_s(entry: Mapping[str, object]) -> float:
    """Time since the last modification; 0, so that the blob is kept, if the file system does not report it."""
    changed = entry.get("mtime") or entry.get("LastModified") or entry.get("created")
    if isinstance(changed, datetime):
        changed = changed.timestamp()
    return time.time() - changed if isinstance(changed, (int, float)) else 0.0
