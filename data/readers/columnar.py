"""Read columnar tables: Parquet, Arrow streams and Arrow files (Feather). A row becomes an object of its columns.

Arrow stores a list of different objects as structs with the fields of all of them: fields that an object never had are
null. Such nulls are removed below the columns, so that a row is the object that was written. Integers of a ClassLabel
column (`datasets`) get their names.
"""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from tunesmith.data.named_label import NamedLabel
from tunesmith.data.readers.cells import EMPTY, NESTED, nested
from tunesmith.data.readers.lines import Line, hash_range
from tunesmith.data.readers.shard import SHARD_BYTES, Shard
from tunesmith.data.refusal import Refusal

_BATCH_ROWS = 512
_FILE_MAGIC, _FEATHER_1 = b"ARROW1", b"FEA1"
_LISTS = ("Sequence", "List", "LargeList")
"""Types of `datasets` whose items have a type."""


def cut_parquet(path: Path, kind: str) -> Iterator[Shard]:
    """Yield shards of whole row groups, about SHARD_BYTES each in the file."""
    file = _parquet(path)
    groups = file.metadata.num_row_groups
    sizes = [(file.metadata.row_group(i).total_byte_size, file.metadata.row_group(i).num_rows) for i in range(groups)]
    yield from _shards(path, kind, sizes, file.schema_arrow)


def read_parquet(shard: Shard) -> Iterator[Line]:
    """Yield the rows of a shard. Raises Refusal if the file is damaged."""
    file = _parquet(Path(shard.path))
    batches = file.iter_batches(_BATCH_ROWS, row_groups=list(range(shard.start, shard.stop)))
    yield from _rows(_whole(batches, "Parquet file"), file.schema_arrow, shard.first_line)


def cut_arrow(path: Path, kind: str) -> Iterator[Shard]:
    """Yield shards of whole record batches of an Arrow stream (the format of `datasets`) or file (Feather)."""
    schema, batches = _arrow(path)
    yield from _shards(path, kind, [(batch.nbytes, batch.num_rows) for batch in batches], schema)


def read_arrow(shard: Shard) -> Iterator[Line]:
    """Yield the rows of a shard. Raises Refusal if the file is damaged."""
    schema, batches = _arrow(Path(shard.path), shard.start, shard.stop)
    slices = (batch.slice(at, _BATCH_ROWS) for batch in batches for at in range(0, batch.num_rows, _BATCH_ROWS))
    yield from _rows(slices, schema, shard.first_line)


def _shards(path: Path, kind: str, groups: list[tuple[int, int]], schema: Any) -> Iterator[Shard]:
    """groups: number of bytes and of rows of each."""
    whole = hash_range(path, 0, path.stat().st_size)
    reading = _reading(schema)
    start, row, size, rows = 0, 1, 0, 0
    for number, (num_bytes, num_rows) in enumerate(groups, start=1):
        size, rows = size + num_bytes, rows + num_rows
        if size >= SHARD_BYTES or number == len(groups):
            digest = sha256(f"{whole} {start} {number}{reading}".encode()).hexdigest()
            yield Shard(str(path), kind, start, number, row, digest)
            start, row, size, rows = number, row + rows, 0, 0
    if not groups:
        yield Shard(str(path), kind, 0, 0, 1, whole)


def _reading(schema: Any) -> str:
    """What affects how a file is read, for the hashes of its shards; empty for files that are read as in version
    0.2, so that their hashes stay valid."""
    parts: list[object] = ["without padding"] if any(_struct_depth(field.type) > 1 for field in schema) else []
    parts += [names] if (names := _class_names(schema)) else []
    return json.dumps(parts) if parts else ""


def _rows(batches: Iterator[Any], schema: Any, first_line: int) -> Iterator[Line]:
    kinds = {field.name: field.type for field in schema if field.type.num_fields}
    class_names = _class_names(schema)
    number = first_line
    for batch in batches:
        for value in batch.to_pylist():
            for key, kind in kinds.items():
                value[key] = _unpadded(value[key], kind)
            for key, names in class_names.items():
                value[key] = _named(value[key], names)
            for key in NESTED:
                if isinstance(value.get(key), str):
                    value[key] = nested(value[key], key)
            broken = next((item for item in value.values() if isinstance(item, Refusal)), None)
            yield Line(number, broken or value, value)
            number += 1
    if number == 1:
        yield Line(1, EMPTY, b"")


def _unpadded(value: Any, kind: Any) -> Any:
    """Return a value of a nested type without the null fields of its structs; a map becomes an object."""
    from pyarrow import types

    if value is None or not types.is_nested(kind):
        return value
    if types.is_struct(kind):
        fields = ((field.name, field.type) for field in kind)
        return {name: _unpadded(value[name], inner) for name, inner in fields if value[name] is not None}
    if types.is_map(kind):
        return {key: _unpadded(item, kind.item_type) for key, item in value}
    return [_unpadded(item, kind.value_type) for item in value] if isinstance(value, list) else value


def _struct_depth(kind: Any) -> int:
    """Number of structs inside each other. Null fields of the outer ones, the messages, never had an effect."""
    from pyarrow import types

    if types.is_map(kind):
        return 2  # was read as a list of pairs
    inner = max((_struct_depth(kind.field(i).type) for i in range(kind.num_fields)), default=0)
    return inner + types.is_struct(kind)


def _class_names(schema: Any) -> dict[str, list[str]]:
    """Return the names of the ClassLabel columns, from the metadata that `datasets` writes to the schema."""
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(text)["info"]["features"] if text else {}
    except (ValueError, KeyError, TypeError):
        return {}
    names: dict[str, list[str]] = {}
    for key, feature in features.items() if isinstance(features, dict) else ():
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        if isinstance(feature, dict) and feature.get("_type") in _LISTS:
            feature = feature.get("feature")
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature["names"], list):
            names[key] = [str(name) for name in feature["names"]]
    return {key: names[key] for key in schema.names if key in names}


def _named(value: Any, names: list[str]) -> Any:
    """Return a label with its name; -1, the absence of a label, becomes null."""
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    if type(value) is not int or value >= len(names):
        return value
    return NamedLabel(value, names[value]) if value >= 0 else None


def _parquet(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path, memory_map=True)
    except pyarrow.ArrowInvalid as error:
        raise Refusal("unreadable_file", f"not a valid Parquet file: {error}", "write it again") from error


def _arrow(path: Path, start: int = 0, stop: int | None = None) -> tuple[Any, Iterator[Any]]:
    """Return the schema of a stream or file, and its record batches start .. stop."""
    import pyarrow

    with open(path, "rb") as file:
        magic = file.read(len(_FILE_MAGIC))
    if magic.startswith(_FEATHER_1):
        raise Refusal(
            "unreadable_file", "the file is in the old format Feather 1", "write it again with pyarrow or pandas"
        )
    source = pyarrow.memory_map(str(path))
    try:
        if magic == _FILE_MAGIC:
            table = pyarrow.ipc.open_file(source)
            numbers = range(start, table.num_record_batches if stop is None else stop)
            return table.schema, _whole((table.get_batch(number) for number in numbers), "Arrow file")
        stream = pyarrow.ipc.open_stream(source)
        chosen = (batch for n, batch in enumerate(stream) if n >= start and (stop is None or n < stop))
        return stream.schema, _whole(chosen, "Arrow stream")
    except pyarrow.ArrowInvalid as error:
        raise Refusal("unreadable_file", f"not a valid Arrow file or stream: {error}", "write it again") from error


def _whole(batches: Iterator[Any], what: str) -> Iterator[Any]:
    """Yield the batches. Raises Refusal if one is damaged."""
    import pyarrow

    try:
        yield from batches
    except pyarrow.ArrowException as error:
        raise Refusal("unreadable_file", f"the {what} is damaged: {error}", "write it again") from error
