"""Read a JSON file that is one list: elements are located without loading the file, then parsed like lines."""

import mmap
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from tunesmith.data.readers.lines import BOM, MAX_ROW_BYTES, Line, parse, too_large
from tunesmith.data.readers.shard import SHARD_BYTES, Shard
from tunesmith.data.refusal import Refusal

# Strings are skipped as a whole (possessive: no backtracking, so no memory for it); a lone quote is an unclosed string.
_STRUCTURE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},"]', re.DOTALL)


def cut(path: Path, kind: str) -> Iterator[Shard]:
    """Yield shards of whole elements, about SHARD_BYTES each."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        opening = data.find(b"[")
        start = stop = opening + 1
        line = first_line = 1 + data[:start].count(b"\n")
        digest = sha256()
        for begin, end, whole in _elements(data, start, len(data)):
            if whole and end == len(data):
                raise Refusal(
                    "cut_off",
                    "the list has no closing ]: rows may be missing",
                    "the file is cut off: write it again",
                )
            if begin > start and stop - start >= SHARD_BYTES:
                yield Shard(str(path), kind, start, stop, first_line, digest.hexdigest())
                line += data[stop:begin].count(b"\n")
                start, first_line, digest, stop = begin, line, sha256(), begin
            digest.update(data[stop:end])
            line += data[stop:end].count(b"\n")
            stop = end
        yield Shard(str(path), kind, start, stop, first_line, digest.hexdigest())


def read(shard: Shard) -> Iterator[Line]:
    """Yield the elements of a shard as rows, each with the line on which it starts."""
    with open(shard.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        line, position, rows = shard.first_line, shard.start, 0
        for begin, end, whole in _elements(data, shard.start, shard.stop):
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
            remedy = "add rows, or leave the file out"
            yield Line(1, Refusal("empty_file", "the file's list is empty", remedy), b"")


def _elements(data: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
    """Yield (begin, end, whole) of each element of a list whose content starts at `start`; the last one ends at `stop`
    or at the end of the list. Raises Refusal if text follows the list."""
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
                        "the file continues after the end of the list",
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
