"""Page hashes of a token index: every page is verified each time it is read.

`pages.sha256` of an index directory: a line of JSON, then the first 8 bytes of the SHA-256 of each page of each file,
in the order of the line. Files are read by position and not mapped: reading a mapping of a file that was truncated in
the meantime would end the process with SIGBUS.
"""

import hashlib
import json
import os
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tunesmith.errors import RunFault
from tunesmith.progress import advance
from tunesmith.rundir.commit import MANIFEST, hash_file, read_manifest

HASHES = "pages.sha256"
PAGE_BYTES = 4096
"""A document of 500 tokens is read with 1 or 2 pages of tokens, each verified in 3 us (SHA-256 instructions)."""
REMEDY = (
    "delete this directory and resume the run, or run the same command again: the data is prepared again; if it "
    "happens again, check the disk"
)
_DIGEST_BYTES = 8
_CHUNK_BYTES = 1024 * PAGE_BYTES
_SCHEMA = 1


class PageHashes:
    """The hashes of all pages of the files of an index."""

    def __init__(self, path: Path, by_name: dict[str, tuple[int, bytes]]):
        self.path, self._by_name = path, by_name

    def digests(self, name: str) -> bytes:
        """Return the hashes of the pages of a file. Raises ValueError if there are none."""
        if name not in self._by_name:
            raise ValueError(f"{self.path.name} has no hashes of {name}")
        return self._by_name[name][1]

    def fault(self, directory: Path) -> str | None:
        """Return what is wrong with the files of the directory, naming the file; None if every byte is as written."""
        faults = (self.fault_of(directory, name) for name in self._by_name)
        return next((fault for fault in faults if fault is not None), None)

    def fault_of(self, directory: Path, name: str) -> str | None:
        """Return what is wrong with one file of the directory; None if every byte is as written."""
        num_bytes, digests = self._by_name[name]
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != num_bytes:
            return f"{name} has {size} bytes instead of {num_bytes}"
        return None if _digests_of(path) == digests else f"{name} does not match its hash: it was modified"


def write_page_hashes(directory: Path, names: Sequence[str]) -> None:
    """Hash the pages of complete files, and write `pages.sha256`."""
    digests = [_digests_of(directory / name) for name in names]
    files = {name: (directory / name).stat().st_size for name in names}
    facts = {"schema": _SCHEMA, "page_bytes": PAGE_BYTES, "files": files}
    body = b"".join(digests)
    header = json.dumps({**facts, "sha256": _hash_of(facts, body)})
    (directory / HASHES).write_bytes(header.encode("ascii") + b"\n" + body)


def read_page_hashes(directory: Path) -> PageHashes | None:
    """Read `pages.sha256`; None for an index of an earlier version. Raises ValueError, KeyError or TypeError if it is
    damaged."""
    path = directory / HASHES
    try:
        header, _, body = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    try:
        facts = json.loads(header)
        recorded = facts.pop("sha256")
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{HASHES} is damaged ({error})") from error
    if recorded != _hash_of(facts, body):
        raise ValueError(f"{HASHES} does not match its hash: it was modified")
    if (facts["schema"], facts["page_bytes"]) != (_SCHEMA, PAGE_BYTES):
        raise ValueError(f"{HASHES} was written by a newer version (schema {facts['schema']})")
    by_name, start = {}, 0
    for name, num_bytes in facts["files"].items():
        stop = start + _DIGEST_BYTES * -(-num_bytes // PAGE_BYTES)
        by_name[name] = (num_bytes, body[start:stop])
        start = stop
    return PageHashes(path, by_name)


def verified_hashes(directory: Path, names: Sequence[str], fingerprint: str) -> PageHashes | None:
    """Return the page hashes of an index after verifying its first file in `names`, which is read completely.

    None for an index of an earlier version, which has none: all its files are then verified here, if the index is part
    of a committed directory. fingerprint: of the index. Raises OSError, ValueError, KeyError or TypeError.
    """
    hashes = read_page_hashes(directory)
    if (directory.parent / MANIFEST).is_file():
        if fingerprint != (place := f"{directory.parent.name}/{directory.name}"):
            raise ValueError(f"{names[0]} belongs to {fingerprint}, not to {place}")
        recorded = {Path(name): facts["sha256"] for name, facts in read_manifest(directory.parent)["files"].items()}
        has_hashes = Path(directory.name, HASHES) in recorded
        for name in [HASHES] if has_hashes else names:
            if hash_file(directory / name)[0] != recorded[Path(directory.name, name)]:
                raise ValueError(f"{directory.name}/{name} does not match its hash: it was modified")
    if hashes is not None and (fault := hashes.fault_of(directory, names[0])) is not None:
        raise ValueError(fault)
    return hashes


class PagedFile:
    """A file of equal numbers, opened for reading. digests: of its pages; None: not verified. Raises ValueError if it
    has the wrong size, OSError if it cannot be opened."""

    def __init__(self, path: Path, dtype: np.dtype, length: int, digests: bytes | None):
        self.path, self.dtype, self.length, self._digests = path, dtype, length, digests
        self._num_bytes = length * dtype.itemsize
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)
        if (size := os.fstat(self._fd).st_size) != self._num_bytes:
            raise ValueError(f"{path.name} has {size} bytes instead of {self._num_bytes}")
        self._values: np.ndarray | None = None
        self._is_read = np.zeros(-(-self._num_bytes // PAGE_BYTES), np.bool_)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the numbers start .. stop, read-only. Raises RunFault if their pages do not match their hashes."""
        size = self.dtype.itemsize
        first = start * size // PAGE_BYTES * PAGE_BYTES
        end = min(self._num_bytes, -(-stop * size // PAGE_BYTES) * PAGE_BYTES)
        content = self._pages(first, end)
        return np.frombuffer(content, self.dtype, stop - start, start * size - first)

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Return the numbers at these places. Pages are verified at their first use and kept in memory."""
        if self._values is None:
            self._values = np.empty(self.length, self.dtype)  # memory is used only where it is written
        each = PAGE_BYTES // self.dtype.itemsize
        pages = np.unique(numbers // each)
        for page in pages[~self._is_read[pages]].tolist():
            start, stop = page * each, min(self.length, (page + 1) * each)
            self._values[start:stop] = self.read(start, stop)
            self._is_read[page] = True
        return self._values[numbers]

    def __getitem__(self, place: slice | np.ndarray | int) -> np.ndarray:
        """Like an array; places are not negative."""
        if isinstance(place, slice):
            place = np.arange(self.length)[place]
        return self.take(np.asarray(place, np.int64))

    def _pages(self, first: int, end: int) -> bytes:
        try:
            content = os.pread(self._fd, end - first, first)
        except OSError as error:
            raise damaged(self.path, f"cannot be read ({error.strerror})") from error
        if len(content) != end - first:
            raise damaged(self.path, f"ends at byte {first + len(content)} instead of {self._num_bytes}")
        if self._digests is not None:
            begin = first // PAGE_BYTES * _DIGEST_BYTES
            expected = self._digests[begin : begin + -(-len(content) // PAGE_BYTES) * _DIGEST_BYTES]
            if (digests := _digests_in(content)) != expected:
                pages = range(0, len(digests), _DIGEST_BYTES)
                wrong = next(p for p in pages if digests[p : p + _DIGEST_BYTES] != expected[p : p + _DIGEST_BYTES])
                place = first + wrong // _DIGEST_BYTES * PAGE_BYTES
                raise damaged(self.path, f"does not match its hash in the {PAGE_BYTES} bytes from byte {place}")
        return content


def damaged(path: Path, what: str) -> RunFault:
    """Return the error for a damaged file of the prepared data."""
    return RunFault(
        f"the prepared data was damaged: {path.parent.name}/{path.name} {what}",
        where=str(path.parent),
        remedy=REMEDY,
    )


def _digests_of(path: Path) -> bytes:
    parts = []
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            parts.append(_digests_in(chunk))
            advance()
    return b"".join(parts)


def _digests_in(content: bytes) -> bytes:
    """The hashes of consecutive pages. The first page starts at a multiple of PAGE_BYTES."""
    if len(content) <= PAGE_BYTES:
        return hashlib.sha256(content).digest()[:_DIGEST_BYTES] if content else b""
    view = memoryview(content)
    pages = (view[start : start + PAGE_BYTES] for start in range(0, len(content), PAGE_BYTES))
    return b"".join(hashlib.sha256(page).digest()[:_DIGEST_BYTES] for page in pages)


def _hash_of(facts: dict[str, object], body: bytes) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode("ascii") + body).hexdigest()
