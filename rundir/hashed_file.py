"""A file whose SHA-256 is made while it is written, so that sealing it reads nothing back."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

_CHUNK_BYTES = 8 << 20
_WRITEBACK_BYTES = 16 << 20
"""So often the kernel is told to start with the disk, which then works while the rest is still being copied."""


class HashedFile:
    """Written once, from front to back. Each chunk is hashed in a second thread while the kernel takes it.

    After the block `digest` (hex) and `num_bytes` are known and the content is durable. Raises OSError.
    """

    def __init__(self, path: Path):
        self.path, self.digest, self.num_bytes = path, "", 0
        self._hash = hashlib.sha256()
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115
        self._second = ThreadPoolExecutor(1, thread_name_prefix="hash")
        self._told_bytes = 0

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
            if self.num_bytes - self._told_bytes >= _WRITEBACK_BYTES and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._file.fileno(), 0, self.num_bytes, os.POSIX_FADV_DONTNEED)
                self._told_bytes = self.num_bytes

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
