"""Tensors of a model directory as bytes: where they are stored, and comparison without loading them. Never imports
torch."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith.modeling.base_model.weight_files import INDEX, read_object

_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class Location:
    """Where a tensor is stored. dtype: safetensors' name, such as BF16. start: of its bytes in the file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int

    def chunks(self) -> Iterator[bytes]:
        """Read the tensor's bytes in pieces."""
        with open(self.path, "rb") as file:
            yield from chunks_of(file, self.start, self.num_bytes)


def weight_file_paths(directory: Path) -> list[Path]:
    """Return the safetensors files of a model directory."""
    index = directory / INDEX
    names = sorted(set(read_object(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    return [directory / name for name in names]


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, Location]]:
    """Return the metadata of a safetensors file, and its tensors in the order of their data."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", {})
    ordered = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    return metadata, {name: _location(path, 8 + length, entry) for name, entry in ordered}


def tensor_locations(directory: Path) -> dict[str, Location]:
    """Return where each tensor of a model directory is stored."""
    return {name: at for path in weight_file_paths(directory) for name, at in read_header(path)[1].items()}


def same_bytes(first: Location, second: Location) -> bool:
    """Whether two tensors are equal bit by bit, in dtype and shape, too."""
    if (first.dtype, first.shape, first.num_bytes) != (second.dtype, second.shape, second.num_bytes):
        return False
    return all(a == b for a, b in zip(first.chunks(), second.chunks(), strict=True))


def chunks_of(file: BinaryIO, start: int, num_bytes: int) -> Iterator[bytes]:
    """Read a range of an open file in pieces. OSError if the file ends early."""
    file.seek(start)
    while num_bytes:
        chunk = file.read(min(num_bytes, _CHUNK_BYTES))
        if not chunk:
            raise OSError("the weight file ended early")
        num_bytes -= len(chunk)
        yield chunk


def _location(path: Path, start: int, entry: dict[str, Any]) -> Location:
    first, last = entry["data_offsets"]
    return Location(path, entry["dtype"], tuple(entry["shape"]), start + first, last - first)
