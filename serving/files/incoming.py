"""Receives a file: size limit, hashes, format check and writing in one pass."""

import hashlib
import time

from tunesmith.serving.errors import ApiError
from tunesmith.serving.files.blobs import Blobs
from tunesmith.serving.files.jsonl import JsonLines
from tunesmith.serving.names import make_id
from tunesmith.serving.store.tables import File

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
"""Valid purposes of a file. Only `fine-tune` files are used; others are stored and returned."""
EXPIRES_S = (3600, 30 * 24 * 3600)
MAX_NAME = 255


class Incoming:
    """A file being received: `feed`, `commit`, then add its `row`. Call `discard` in a finally block."""

    def __init__(self, blobs: Blobs, max_bytes: int):
        self.id = make_id("file-")
        self._max_bytes = max_bytes
        self._writer = blobs.writer(self.id)
        self._lines = JsonLines()
        self._sha256, self._md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        self.bytes = 0

    def feed(self, chunk: bytes) -> None:
        self.bytes += len(chunk)
        if self.bytes > self._max_bytes:
            raise ApiError(
                f"The file is larger than {self._max_bytes} bytes", status=413, param="file", code="file_too_large"
            )
        self._sha256.update(chunk)
        self._md5.update(chunk)
        self._lines.feed(chunk)
        self._writer.write(chunk)

    def require_jsonl(self) -> None:
        self._lines.finish()

    @property
    def md5(self) -> str:
        return self._md5.hexdigest()

    def commit(self) -> None:
        self._writer.commit()

    def discard(self) -> None:
        self._writer.discard()

    def row(self, organization: str, filename: str, purpose: str, expires_after_s: int | None) -> File:
        created = int(time.time())
        return File(
            id=self.id,
            organization=organization,
            created_at=created,
            bytes=self.bytes,
            filename=filename,
            purpose=purpose,
            status="processed",
            expires_at=None if expires_after_s is None else created + expires_after_s,
            blob=self.id,
            sha256=self._sha256.hexdigest(),
        )


def clean_name(filename: str | None) -> str:
    """The file name for display: without directories and control characters. It is never used in a path."""
    name = (filename or "").replace("\\", "/").rsplit("/", 1)[-1]
    name = "".join(letter for letter in name if letter.isprintable())[:MAX_NAME]
    if not name.strip(". "):
        raise ApiError("The file must have a name", param="file")
    return name


def check_purpose(purpose: str | None, filename: str) -> str:
    """Return the purpose. Raises ApiError if it is invalid or does not allow a file of this name."""
    if purpose is None:
        raise ApiError("Missing required parameter: 'purpose'", param="purpose")
    if purpose not in PURPOSES:
        raise ApiError(f"'{purpose[:80]}' is not one of {list(PURPOSES)} - 'purpose'", param="purpose")
    if purpose == "fine-tune" and not filename.lower().endswith(".jsonl"):
        raise ApiError(
            f"Invalid file format for Fine-Tuning API. Must be .jsonl, but the file name is {filename!r}",
            param="file",
            code="invalid_file_format",
        )
    return purpose


def check_expiry(anchor: str | None, seconds: int | str | None) -> int | None:
    """Seconds from creation to expiry; None: never. Raises ApiError if invalid."""
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise ApiError("'expires_after[anchor]' must be 'created_at'", param="expires_after.anchor")
    least, most = EXPIRES_S
    text = str(seconds)
    if not (text.isascii() and text.isdigit() and len(text) < 12) or not least <= int(text) <= most:
        raise ApiError(f"'expires_after[seconds]' must be between {least} and {most}", param="expires_after.seconds")
    return int(text)
