"""Read tables: CSV and TSV, Parquet, Arrow streams. A row becomes an object with the columns as keys."""

import csv
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith.data.readers.lines import BOM, MAX_ROW_BYTES, Line, hash_range
from tunesmith.data.readers.shard import SHARD_BYTES, Shard
from tunesmith.data.refusal import Refusal

_BATCH_ROWS = 512
# Columns whose string cells are parsed as JSON.
_NESTED = ("messages", "conversations", "tools", "history")
_EMPTY = Refusal("empty_file", "the file has no rows", "add rows, or remove the file from the recipe")


class _Records:
    """Iterator over the records of a CSV file from a byte offset, which tracks the end of each record. Undecodable
    bytes become surrogates."""

    def __init__(self, file: BinaryIO, start: int, stop: int, dialect: Any):
        csv.field_size_limit(MAX_ROW_BYTES)
        self._file, self._stop = file, stop
        file.seek(start)
        self.position = start
        self.lines = 0
        self._reader = csv.reader(self._decoded(), strict=True, **dialect)

    def __iter__(self) -> Iterator[list[str] | csv.Error]:
        while True:
            try:
                yield next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield error

    def _decoded(self) -> Iterator[str]:
        while self.position < self._stop and (raw := self._file.readline()):
            if self.position == 0:
                self.position = len(BOM) if raw.startswith(BOM) else 0
                raw = raw.removeprefix(BOM)
            self.position += len(raw)
            self.lines += 1
            yield raw.decode("utf-8", "surrogateescape")


def cut_csv(path: Path, kind: str) -> Iterator[Shard]:
    """Yield shards of whole records. Raises Refusal if the first line is not a valid header."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        records = _Records(file, 0, size, _dialect(path))
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
                yield Shard(str(path), kind, start, stop, line, hash_range(path, start, stop), columns)
                start, line = stop, 1 + records.lines
        if stop > start or start == records.position:
            yield Shard(str(path), kind, start, stop, line, hash_range(path, start, stop), columns)


def read_csv(shard: Shard) -> Iterator[Line]:
    path = Path(shard.path)
    with open(path, "rb") as file:
        records = _Records(file, shard.start, shard.stop, _dialect(path))
        line, rows = shard.first_line, 0
        for record in records:
            next_line = shard.first_line + records.lines
            if isinstance(record, csv.Error) or any(record):  # an empty record is a blank line
                rows += 1
                yield Line(line, _record_value(record, shard.header), record)
            line = next_line
        if not rows and shard.first_line <= 2 and shard.stop == path.stat().st_size:
            yield Line(1, _EMPTY, b"")


def cut_parquet(path: Path, kind: str) -> Iterator[Shard]:
    """Yield shards of whole row groups, about SHARD_BYTES each in the file."""
    file = _parquet(path)
    groups = file.metadata.num_row_groups
    sizes = [(file.metadata.row_group(i).total_byte_size, file.metadata.row_group(i).num_rows) for i in range(groups)]
    yield from _table_shards(path, kind, sizes)


def read_parquet(shard: Shard) -> Iterator[Line]:
    batches = _parquet(Path(shard.path)).iter_batches(_BATCH_ROWS, row_groups=list(range(shard.start, shard.stop)))
    yield from _table_rows(batches, shard.first_line)


def cut_arrow(path: Path, kind: str) -> Iterator[Shard]:
    """Yield shards of whole record batches of an Arrow stream, the format of `datasets`."""
    yield from _table_shards(path, kind, [(batch.nbytes, batch.num_rows) for batch in _arrow(path)])


def read_arrow(shard: Shard) -> Iterator[Line]:
    chosen = (batch for number, batch in enumerate(_arrow(Path(shard.path))) if shard.start <= number < shard.stop)
    slices = (batch.slice(at, _BATCH_ROWS) for batch in chosen for at in range(0, batch.num_rows, _BATCH_ROWS))
    yield from _table_rows(slices, shard.first_line)


def _table_shards(path: Path, kind: str, groups: list[tuple[int, int]]) -> Iterator[Shard]:
    """groups: number of bytes and of rows of each."""
    whole = hash_range(path, 0, path.stat().st_size)
    start, row, size, rows = 0, 1, 0, 0
    for number, (num_bytes, num_rows) in enumerate(groups, start=1):
        size, rows = size + num_bytes, rows + num_rows
        if size >= SHARD_BYTES or number == len(groups):
            digest = sha256(f"{whole} {start} {number}".encode()).hexdigest()
            yield Shard(str(path), kind, start, number, row, digest)
            start, row, size, rows = number, row + rows, 0, 0
    if not groups:
        yield Shard(str(path), kind, 0, 0, 1, whole)


def _table_rows(batches: Any, first_line: int) -> Iterator[Line]:
    number = first_line
    for batch in batches:
        for value in batch.to_pylist():
            for key in _NESTED:
                if isinstance(value.get(key), str):
                    value[key] = _nested(value[key], key)
            broken = next((item for item in value.values() if isinstance(item, Refusal)), None)
            yield Line(number, broken or value, value)
            number += 1
    if number == 1:
        yield Line(1, _EMPTY, b"")


def _record_value(record: list[str] | csv.Error, header: tuple[str, ...]) -> Any:
    if isinstance(record, csv.Error):
        return Refusal(
            "invalid_csv", f"invalid CSV: {record}", "double the quotes inside a field, and close every quote"
        )
    if len(record) != len(header):
        reason = f"the record has {len(record)} fields, the header {len(header)}"
        return Refusal("invalid_csv", reason, 'put fields that contain commas or line breaks in "quotes"')
    if any("\udc80" <= character <= "\udcff" for cell in record if not cell.isascii() for character in cell):
        return Refusal(
            "invalid_utf8",
            "invalid UTF-8 in the record",
            "save the file as UTF-8; `iconv -f WINDOWS-1252 -t UTF-8` converts most files",
        )
    value: dict[str, Any] = dict(zip(header, record, strict=True))
    for key in _NESTED:
        if value.get(key):
            value[key] = _nested(value[key], key)
            if isinstance(value[key], Refusal):
                return value[key]
    return value


def _nested(text: str, key: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return Refusal("invalid_json", f'the column "{key}" is not valid JSON: {error}', "write each cell as JSON")


def _check_header(header: list[str] | csv.Error) -> None:
    if isinstance(header, csv.Error):
        raise Refusal("invalid_csv", f"line 1: invalid CSV: {header}", "the first line must name the columns")
    names = [name.strip() for name in header]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        raise Refusal("invalid_csv", f'line 1: duplicate column "{duplicate}"', "give every column a unique name")


def _dialect(path: Path) -> dict[str, str]:
    """The delimiter: tabs in a .tsv file; semicolons if the header has them and no comma, as spreadsheets write them
    where the comma is the decimal point."""
    if path.suffix.lower() == ".tsv":
        return {"delimiter": "\t"}
    with open(path, "rb") as file:
        header = file.readline(MAX_ROW_BYTES)
    return {"delimiter": ";" if b";" in header and b"," not in header else ","}


def _parquet(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path, memory_map=True)
    except pyarrow.ArrowInvalid as error:
        raise Refusal("unreadable_file", f"not a valid Parquet file: {error}", "write it again") from error


def _arrow(path: Path) -> Any:
    import pyarrow

    try:
        return pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))
    except pyarrow.ArrowInvalid as error:
        raise Refusal("unreadable_file", f"not a valid Arrow stream: {error}", "write it again") from error
