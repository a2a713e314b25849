"""Cached hashes of large files, so that a plan does not read gigabytes again. Standard library only."""

import hashlib
from pathlib import Path

_CHUNK_BYTES = 4 << 20


def file_digest(path: Path, cache: Path | None = None) -> str:
    """Return the SHA-256 (hex) of a file's content.

    With `cache` the result is cached under the file's path, size and times, so that an unchanged file is not read
    again.
    """
    facts = path.stat()
    kept = None
    if cache is not None:
        key = f"{path.resolve()}|{facts.st_size}|{facts.st_mtime_ns}|{facts.st_ctime_ns}|{facts.st_ino}"
        kept = cache / "digests" / hashlib.sha256(key.encode()).hexdigest()
        if kept.is_file() and len(known := kept.read_text().strip()) == 64:
            return known
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(digest.hexdigest())
    return digest.hexdigest()
