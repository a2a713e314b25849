"""Read CSV and TSV. A record becomes an object with the columns of the header as keys."""

import csv
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tunesmith.data.readers.cells import EMPTY, NESTED, nested
from tunesmith.data.readers.lines import BOM, MAX_ROW_BYTES, Line, hash_range
from tunesmith.data.readers.shard import SHARD_BYTES, Shard
from tunesmith.data.refusal import Refusal

_HEAD_BYTES = 1 << 20  # of the header, to find delimiter and line ends
_READ_BYTES = 1 << 16
_QUOTED = re.compile(rb'"[^"]*+"')
_LINE_END = re.compile(rb"\r\n?|\n")


class _Layout(NamedTuple):
    """delimiter: between fields. ending: of lines; a lone CR as on old Macs, or LF, also for CRLF."""

    delimiter: str
    ending: bytes


class _Records:
    """Iterator over the records of a CSV file from a byte offset, which tracks the end of each record. Undecodable
    bytes become surrogates."""

    def __init__(self, file: BinaryIO, start: int, stop: int, layout: _Layout):
        csv.field_size_limit(MAX_ROW_BYTES)
        self._file, self._stop, self._ending = file, stop, layout.ending
        self._buffer, self._at = b"", 0
        file.seek(start)
        self.position = start
        self.lines = 0
        self._reader = csv.reader(self._decoded(), strict=True, delimiter=layout.delimiter)

    def __iter__(self) -> Iterator[list[str] | csv.Error]:
        while True:
            try:
                yield next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield error

    def _decoded(self) -> Iterator[str]:
        while self.position < self._stop and (raw := self._line()):
            if self.position == 0:
                self.position = len(BOM) if raw.startswith(BOM) else 0
                raw = raw.removeprefix(BOM)
            self.position += len(raw)
            self.lines += 1
            yield raw.decode("utf-8", "surrogateescape")

    def _line(self) -> bytes:
        if self._ending == b"\n":
            return self._file.readline()
        end = self._buffer.find(self._ending, self._at)
        while end < 0 and (part := self._file.read(_READ_BYTES)):
            self._buffer, self._at = self._buffer[self._at :] + part, 0
            end = self._buffer.find(self._ending)
        start, self._at = self._at, len(self._buffer) if end < 0 else end + 1
        return self._buffer[start : self._at]


def cut_csv(path: Path, kind: str, delimiter: str = "") -> Iterator[Shard]:
    """Yield shards of whole records. delimiter: empty to detect it. Raises Refusal if the first line is not a valid
    header."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        records = _Records(file, 0, size, _layout(path, delimiter))
        header = next(iter(records), None)
        if header is None:
            yield Shard(str(path), kind, 0, 0, 1, sha256().hexdigest())
            return
        _check_header(header)
        columns = tuple(name.strip() for name in header)  # type: ignore[union-attr]
        start, line = records.position, 1 + records.lines
        stop = start
        for _ in records:
            stop = records.position
            if stop - start >= SHARD_BYTES:
                yield Shard(str(path), kind, start, stop, line, hash_range(path, start, stop), columns, delimiter)
                start, line = stop, 1 + records.lines
        if stop > start or start == records.position:
            yield Shard(str(path), kind, start, stop, line, hash_range(path, start, stop), columns, delimiter)


def read_csv(shard: Shard) -> Iterator[Line]:
    """Yield the records of a shard."""
    path = Path(shard.path)
    with open(path, "rb") as file:
        records = _Records(file, shard.start, shard.stop, _layout(path, shard.delimiter))
        line, rows = shard.first_line, 0
        for record in records:
            next_line = shard.first_line + records.lines
            if isinstance(record, csv.Error) or any(record):  # an empty record is a blank line
                rows += 1
                yield Line(line, _record_value(record, shard.header), record)
            line = next_line
        if not rows and shard.first_line <= 2 and shard.stop == path.stat().st_size:
            yield Line(1, EMPTY, b"")


def _record_value(record: list[str] | csv.Error, header: tuple[str, ...]) -> Any:
    if isinstance(record, csv.Error):
        problem = str(record)
        if problem.startswith("new-line character"):  # Python's text continues with advice on open()
            problem = "a line break (CR) outside quotes, unlike the other line ends"
        return Refusal(
            "invalid_csv", f"invalid CSV: {problem}", "double the quotes inside a field, and close every quote"
        )
    if len(record) != len(header):
        reason = f"the record has {len(record)} fields, the header {len(header)}"
        remedy = 'put fields that contain commas or line breaks in "quotes"'
        if len(header) == 1:
            remedy += "; if the columns have another delimiter, set data.csv_delimiter"
        return Refusal("invalid_csv", reason, remedy)
    if any("\udc80" <= character <= "\udcff" for cell in record if not cell.isascii() for character in cell):
        return Refusal(
            "invalid_utf8",
            "invalid UTF-8 in the record",
            "save the file as UTF-8; `iconv -f WINDOWS-1252 -t UTF-8` converts most files",
        )
    value: dict[str, Any] = dict(zip(header, record, strict=True))
    for key in NESTED:
        if value.get(key):
            value[key] = nested(value[key], key)
            if isinstance(value[key], Refusal):
                return value[key]
    return value


def _check_header(header: list[str] | csv.Error) -> None:
    if isinstance(header, csv.Error):
        raise Refusal("invalid_csv", f"line 1: invalid CSV: {header}", "the first line must name the columns")
    names = [name.strip() for name in header]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        raise Refusal("invalid_csv", f'line 1: duplicate column "{duplicate}"', "give every column a unique name")


def _layout(path: Path, delimiter: str) -> _Layout:
    """Detect the line ends and, if it is not given, the delimiter: tabs in a .tsv file; semicolons (which spreadsheets
    write where the comma is the decimal point) or tabs if the header has them and no comma outside quotes."""
    with open(path, "rb") as file:
        head = _QUOTED.sub(b'""', file.read(_HEAD_BYTES))
    end = _LINE_END.search(head)
    header = head[: end.start()] if end else head
    ending = b"\r" if end and end.group() == b"\r" else b"\n"
    if not delimiter:
        others = "\t" if path.suffix.lower() == ".tsv" else "" if b"," in header else ";\t"
        delimiter = next((mark for mark in others if mark.encode() in header or len(others) == 1), ",")
    return _Layout(delimiter, ending)
