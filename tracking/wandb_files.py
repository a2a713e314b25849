"""Reads the transaction logs of W&B (run-<id>.wandb), which its offline mode leaves behind.

The file is a header of 7 bytes and blocks of 32 KiB with records in the log format of LevelDB; each record is a message
of wandb's own protocol. The package itself reads these files only in its upload process.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768
FILE_HEADER = 7
RECORD_HEADER = 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def last_steps(directory: Path, run_id: str) -> dict[str, int]:
    """The last step of each metric in the offline files of a run, by key of the points."""
    steps: dict[str, int] = {}
    for path in sorted(directory.glob(f"offline-run-*-{run_id}/run-{run_id}.wandb")):
        for step, row in history(path):
            steps.update({key: max(step, steps.get(key, 0)) for key in row if not key.startswith("_")})
    return steps


def history(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (step, values by metric) of each row that was logged."""
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            yield int(row.get("_step", record.history.step.num)), row


def records(path: Path) -> Iterator[Any]:
    """Yield the messages (wandb_internal_pb2.Record) of a file; it ends at a torn record."""
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2  # its classes are generated when it is imported
    for content in _contents(path.read_bytes()):
        record = messages.Record()
        try:
            record.ParseFromString(content)
        except DecodeError:
            return
        yield record


def _contents(data: bytes) -> Iterator[bytes]:
    position, parts = FILE_HEADER, b""
    while position + RECORD_HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < RECORD_HEADER:  # the rest of a block is padding
            position += left
            continue
        size = int.from_bytes(data[position + 4 : position + 6], "little")
        kind = data[position + 6]
        content = data[position + RECORD_HEADER : position + RECORD_HEADER + size]
        if kind not in (FULL, FIRST, MIDDLE, LAST) or len(content) < size:
            return
        position += RECORD_HEADER + size
        parts = content if kind in (FULL, FIRST) else parts + content
        if kind in (FULL, LAST):
            yield parts
