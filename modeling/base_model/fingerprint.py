"""Cached hashes of large files, so that a plan does not read gigabytes again. Standard library only."""

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path

_CHUNK_BYTES = 4 << 20


def file_digest(path: Path, cache: Path | None = None) -> str:
    """Return the SHA-256 (hex) of a file's content.

    With `cache` the result is cached with the file's path, size, times and inode, so that an unchanged file is not read
    again. The cache only saves time: an entry that is damaged or of another file is ignored and replaced, and one that
    cannot be written is left out.
    """
    identity = _identity(path)
    kept = None if cache is None else cache / "digests" / hashlib.sha256(identity.encode()).hexdigest()
    if kept is not None and (known := _cached(kept, identity)) is not None:
        return known
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    if kept is not None and _identity(path) == identity:  # otherwise the file changed while it was read
        _keep(kept, _entry(digest.hexdigest(), identity))
    return digest.hexdigest()


def _identity(path: Path) -> str:
    facts = path.stat()
    return f"{path.resolve()}|{facts.st_size}|{facts.st_mtime_ns}|{facts.st_ctime_ns}|{facts.st_ino}"


def _entry(digest: str, identity: str) -> str:
    """The content of a cache entry: the digest, and a checksum over digest and file."""
    return f"{digest} {hashlib.sha256(f'{digest} {identity}'.encode()).hexdigest()}\n"


def _cached(kept: Path, identity: str) -> str | None:
    try:
        content = kept.read_bytes().decode("ascii", "replace")
    except OSError:
        return None
    digest = content[:64]
    return digest if re.fullmatch("[0-9a-f]{64}", digest) and content == _entry(digest, identity) else None


def _keep(kept: Path, entry: str) -> None:
    temporary = kept.with_name(f"{kept.name}.tmp.{os.getpid()}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(entry, encoding="ascii")
        os.replace(temporary, kept)
    except OSError:  # unwritable, full, or a directory of that name
        with suppress(OSError):
            temporary.unlink()
