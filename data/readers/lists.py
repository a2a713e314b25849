"""A JSON file that is one list: found element by element without reading it whole, then read like lines."""

import mmap
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from tunesmith.data.readers.lines import BOM, MAX_ROW_BYTES, SHARD_BYTES, Line, Piece, parse, too_large
from tunesmith.data.refusal import Refusal

# Strings are skipped as a whole (possessive: no way back, so no memory for it); a lone quote is a string never closed.
_STRUCTURE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},"]', re.DOTALL)


def cut(path: Path) -> Iterator[Piece]:
    """Pieces that start and end with an element, about SHARD_BYTES each."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        opening = data.find(b"[")
        start = stop = opening + 1
        line = first_line = 1 + data[:start].count(b"\n")
        digest = sha256()
        for begin, end, whole in _elements(data, start, len(data)):
            if whole and end == len(data):
                raise Refusal(
                    "cut_off",
                    "the list is not closed by a ]: rows may be missing",
                    "the file is cut off: write it again",
                )
            if begin > start and stop - start >= SHARD_BYTES:
                yield Piece(start, stop, first_line, digest.hexdigest())
                line += data[stop:begin].count(b"\n")
                start, first_line, digest, stop = begin, line, sha256(), begin
            digest.update(data[stop:end])
            line += data[stop:end].count(b"\n")
            stop = end
        yield Piece(start, stop, first_line, digest.hexdigest())


def read(path: Path, piece: Piece) -> Iterator[Line]:
    """The elements of a piece as rows, each with the line at which it starts."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        line, position, rows = piece.first_line, piece.start, 0
        for begin, end, whole in _elements(data, piece.start, piece.stop):
            raw = data[begin : min(end, begin + MAX_ROW_BYTES)]
            blank = len(raw) - len(raw.lstrip())
            line += data[position : begin + blank].count(b"\n")
            position = begin + blank
            rows += 1
            if end - begin > MAX_ROW_BYTES:
                yield Line(line, too_large(end - begin), raw[:1024])
            elif not whole:
                refusal = Refusal(
                    "cut_off", "the file ends inside this element of its list", "the file is cut off: write it again"
                )
                yield Line(line, refusal, raw)
            else:
                yield Line(line, parse(raw.strip().removeprefix(BOM)), raw)
        if not rows:
            yield Line(
                1, Refusal("empty_file", "the file's list is empty", "fill it, or leave it out of the recipe"), b""
            )


def _elements(data: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
    """(begin, end, whole) of the elements of a list whose inside starts at `start`; the last one ends at `stop` or
    where the list does. Raises Refusal where more follows than the list."""
    depth, begin = 1, start
    for match in _STRUCTURE.finditer(data, start, stop):
        mark = match.group() if match.end() - match.start() == 1 else b""
        if mark in (b"[", b"{"):
            depth += 1
        elif mark in (b"]", b"}"):
            depth -= 1
            if depth == 0:
                if data[begin : match.start()].strip():
                    yield begin, match.start(), True
                if data[match.end() : stop].strip():
                    raise Refusal(
                        "invalid_json",
                        "there is more text after the end of the list",
                        "a .json file is one list of rows",
                    )
                return
        elif mark == b"," and depth == 1:
            yield begin, match.start(), True
            begin = match.end()
        elif mark == b'"':
            yield begin, stop, False
            return
    if data[begin:stop].strip():
        yield begin, stop, depth == 1
