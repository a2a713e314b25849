"""Compressed data files: decompressed to the cache once, as a stream and under a limit, and read from there.

So a compressed file has the same rows, line numbers and shards as the file in it.
"""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Any

from tunesmith.data.cache import build_once
from tunesmith.data.readers.lines import hash_range
from tunesmith.errors import InputError

_READ_BYTES = 1 << 20
MAX_RATIO = 200
"""Limit of decompressed to compressed bytes, above FREE_BYTES. Text compresses to between a third and a twentieth;
only files made to fill a disk, or of one repeated row, exceed it."""
FREE_BYTES = 256 << 20


def _zstandard(path: Path) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")


_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstandard,
}
SUFFIXES = tuple(_OPENERS)
MAGIC = {
    b"\x1f\x8b\x08": ".gz",
    b"BZh91AY&SY": ".bz2",
    b"\xfd7zXZ\x00": ".xz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"PK\x03\x04": ".zip",
}
"""First bytes of compressed files, and the suffix that they should have."""


def is_compressed(path: PurePath) -> bool:
    """Whether a file's name says that it is compressed."""
    return path.suffix.lower() in SUFFIXES


def suffix_of(path: PurePath) -> str:
    """Return the suffix of a file's type in lower case, without that of its compression."""
    return (PurePath(path.stem) if is_compressed(path) else path).suffix.lower()


def decompressed(path: Path, cache: Path) -> Path:
    """Return the decompressed copy of a file in the cache; it has the file's name without the compression's suffix.

    Raises InputError if the file is damaged or is far larger decompressed. OSError if it cannot be read.
    """
    size = path.stat().st_size
    key = sha256(f"{hash_range(path, 0, size)} {path.stem}".encode()).hexdigest()

    def write(directory: Path) -> None:
        total = 0
        with open(directory / path.stem, "wb") as file:
            for part in _parts(path):
                total += len(part)
                if total > max(FREE_BYTES, MAX_RATIO * size):
                    raise InputError(
                        f"the file decompresses to more than {MAX_RATIO} times its {size:,} bytes",
                        where=str(path),
                        remedy="if this is right, decompress it yourself and use the decompressed file",
                    )
                file.write(part)

    return build_once(cache / "decompressed" / key, write) / path.stem


def _parts(path: Path) -> Iterator[bytes]:
    try:
        with _OPENERS[path.suffix.lower()](path) as stream:
            while part := stream.read(_READ_BYTES):
                yield part
    except (OSError, EOFError, NotImplementedError, zlib.error, lzma.LZMAError) as error:  # a codec may be missing
        raise InputError(
            f"the compressed file cannot be read: {error}",
            where=str(path),
            remedy=f'write or download it again; if it is not compressed, remove "{path.suffix}" from its name',
        ) from error
