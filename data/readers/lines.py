"""Read JSON Lines and plain text: shards end at line ends, and every error is reported with its line."""

import json
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tunesmith.data.readers.shard import SHARD_BYTES, Shard
from tunesmith.data.refusal import Refusal

MAX_ROW_BYTES = 32 << 20  # larger than any model's context
MAX_DEPTH = 64  # of nested lists and objects
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")
BOM = b"\xef\xbb\xbf"
_EMPTY = Refusal("empty_file", "the file is empty", "add rows, or leave the file out")


class Line(NamedTuple):
    """number: 1-based line in the file, or row of a table. value: the parsed object, or a Refusal. raw: the unparsed
    content (the beginning, if it is long), for the list of rejected rows."""

    number: int
    value: Any
    raw: Any


def cut_lines(path: Path, kind: str) -> Iterator[Shard]:
    """Yield shards of about SHARD_BYTES that end with a line. An empty file is one empty shard."""
    with open(path, "rb") as file:
        start, line, part, whole = 0, 1, b"", path.suffix.lower() in (".txt", ".md")
        while True:
            digest, size, lines, ended = sha256(), 0, 0, False
            while not ended:
                part = file.read(SHARD_BYTES) if size < SHARD_BYTES or whole else file.readline(SHARD_BYTES)
                digest.update(part)
                size += len(part)
                lines += part.count(b"\n")
                ended = not part or (size >= SHARD_BYTES and part.endswith(b"\n") and not whole)
            if size or start == 0:
                yield Shard(str(path), kind, start, start + size, line, digest.hexdigest())
            if not part:
                return
            start, line = start + size, line + lines


def hash_range(path: Path, start: int, stop: int) -> str:
    """Return the SHA-256 (hex) of a byte range of a file."""
    digest, left = sha256(), stop - start
    with open(path, "rb") as file:
        file.seek(start)
        while left and (part := file.read(min(left, SHARD_BYTES))):
            digest.update(part)
            left -= len(part)
    return digest.hexdigest()


def read_lines(shard: Shard) -> Iterator[Line]:
    """Yield the rows of a shard of JSON Lines. Blank lines are skipped; a byte order mark and CRLF are accepted."""
    with open(shard.path, "rb") as file:
        file.seek(shard.start)
        left, number, rows = shard.stop - shard.start, shard.first_line, 0
        while left > 0:
            raw, size = _bounded_line(file, left)
            left -= size
            if size > MAX_ROW_BYTES:
                rows += 1
                yield Line(number, too_large(size), raw)
            else:
                if number == 1:
                    raw = raw.removeprefix(BOM)
                if not raw.isspace() and raw:
                    rows += 1
                    yield Line(number, parse(raw), raw)
            number += 1
        if not rows and shard.start == 0 and file.read(1) == b"":
            yield Line(1, _EMPTY, b"")


def read_whole(shard: Shard) -> Iterator[Line]:
    """Yield a plain text file as one row. Line ends become \\n, as in Python's text mode."""
    size = shard.stop - shard.start
    with open(shard.path, "rb") as file:
        raw = file.read(size if size <= MAX_ROW_BYTES else 1024)
    if size > MAX_ROW_BYTES:
        yield Line(1, too_large(size), raw)
    elif not raw.removeprefix(BOM).strip():
        yield Line(1, _EMPTY, b"")
    else:
        text = decode(raw.removeprefix(BOM))
        value = text if isinstance(text, Refusal) else {"text": text.replace("\r\n", "\n").replace("\r", "\n")}
        yield Line(1, value, raw)


def parse(raw: bytes) -> Any:
    """Parse one line of JSON; return its value, or a Refusal. Stricter than Python: no NaN, no duplicate keys."""
    text = decode(raw)
    if isinstance(text, Refusal):
        return text
    if is_too_deep(text):
        return Refusal("too_deep", f"lists and objects are nested more than {MAX_DEPTH} deep", "flatten the row")
    try:
        return _decode_json(text)
    except json.JSONDecodeError as error:
        if "\0" in text:
            return Refusal("nul_character", "the line contains NUL bytes", "the file is damaged: write it again")
        where = f"column {error.pos + 1}"
        if "\r" in text.strip():
            remedy = "if its lines end with CR (old Macs), convert it: tr '\\r' '\\n' < FILE > converted-FILE"
            return Refusal("invalid_json", f"invalid JSON at {where}: {error.msg}; the line contains CR", remedy)
        hint = "the line is cut off" if error.pos >= len(text.rstrip()) else "check quotes, commas and escapes there"
        return Refusal(
            "invalid_json", f"invalid JSON at {where}: {error.msg}", hint + "; each line must be one complete object"
        )
    except ValueError as error:  # from the decoder's hooks, and for integers of thousands of digits
        return Refusal("invalid_json", f"invalid JSON: {error}", "fix the line")
    except RecursionError:
        return Refusal("too_deep", f"lists and objects are nested more than {MAX_DEPTH} deep", "flatten the row")


def is_utf16(raw: bytes) -> bool:
    """Whether the beginning of a file is UTF-16, by a byte order mark or by the zero bytes of ASCII characters."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    fewer, more = sorted((raw[::2].count(0), raw[1::2].count(0)))
    return len(raw) > 3 and more * 4 > len(raw) and fewer * 20 < len(raw)


def decode(raw: bytes) -> str | Refusal:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return Refusal(
            "invalid_utf8",
            f"invalid UTF-8 at byte {error.start + 1} of the line (0x{raw[error.start]:02x})",
            "save the file as UTF-8; `iconv -f WINDOWS-1252 -t UTF-8` converts most files",
        )


def too_large(size: int) -> Refusal:
    return Refusal(
        "too_large",
        f"the row has {size:,} bytes; the limit is {MAX_ROW_BYTES:,}",
        "split it into several rows; no model has such a long context",
    )


def _bounded_line(file: BinaryIO, left: int) -> tuple[bytes, int]:
    """Read the next line and return it with its size in bytes; a line over MAX_ROW_BYTES is cut to its beginning."""
    raw = file.readline(min(left, MAX_ROW_BYTES + 1))
    size = len(raw)
    if size <= MAX_ROW_BYTES or size >= left:
        return raw, size
    part = raw
    while not part.endswith(b"\n") and size < left and (part := file.readline(min(left - size, SHARD_BYTES))):
        size += len(part)
    return raw[:1024], size


def is_too_deep(text: str) -> bool:
    """Whether lists and objects of a JSON text are nested more than MAX_DEPTH deep."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    deepest = depth = 0
    for bracket in _BRACKET.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest > MAX_DEPTH


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'duplicate key "{duplicate[:40]}"')
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


_decode_json = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant).decode
