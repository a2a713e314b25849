"""A file whose SHA-256 is computed while it is written, so that sealing does not read it back."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from tunesmith.progress import advance

_CHUNK_BYTES = 8 << 20
_WRITEBACK_BYTES = 16 << 20
"""Interval at which the kernel is advised to start writeback, so that the disk works while the rest is copied."""


class HashedFile:
    """Written once, sequentially. Each chunk is hashed in a second thread while it is written.

    After the block, `digest` (hex) and `num_bytes` are set and the content is durable. Raises OSError.
    """

    def __init__(self, path: Path):
        self.path, self.digest, self.num_bytes = path, "", 0
        self._hash = hashlib.sha256()
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115
        self._second = ThreadPoolExecutor(1, thread_name_prefix="hash")
        self._advised_bytes = 0

    def __enter__(self) -> "HashedFile":
        return self

    def write(self, content: bytes | memoryview) -> None:
        view = memoryview(content)
        rest = view.cast("B") if view.nbytes else memoryview(b"")
        while len(rest):
            chunk, rest = rest[:_CHUNK_BYTES], rest[_CHUNK_BYTES:]
            hashed = self._second.submit(self._hash.update, chunk) if len(chunk) > 1 << 16 else None
            if hashed is None:
                self._hash.update(chunk)
            written = 0
            while written < len(chunk):
                written += self._file.write(chunk[written:]) or 0
            if hashed is not None:
                hashed.result()
            self.num_bytes += len(chunk)
            advance()
            if self.num_bytes - self._advised_bytes >= _WRITEBACK_BYTES and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._file.fileno(), 0, self.num_bytes, os.POSIX_FADV_DONTNEED)
                self._advised_bytes = self.num_bytes

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._second.shutdown()
        try:
            if kind is None:
                os.fsync(self._file.fileno())
                self.digest = self._hash.hexdigest()
        finally:
            self._file.close()
