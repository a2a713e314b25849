"""Tensors by name in a safetensors file, read and written one at a time: memory is bounded by the largest tensor.

Format: https://github.com/huggingface/safetensors (8 bytes little-endian header length, JSON header, raw data).
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open

from tunesmith.rundir.hashed_file import HashedFile


def write_tensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, torch.Tensor]],
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> tuple[str, int]:
    """Write a stream of tensors as fp32. shapes: all names and shapes, in the order of the stream. The same tensors and
    metadata give the same bytes.

    Returns SHA-256 (hex) and size in bytes of the file, which is durable then. Raises ValueError if the stream does not
    match `shapes`.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, shape in shapes.items():
        num_bytes = 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + num_bytes]}
        offset += num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data is aligned to 8 bytes, for readers that memory-map it
    expected = iter(shapes.items())
    with HashedFile(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors:
            if next(expected, None) != (name, tuple(tensor.shape)):
                raise ValueError(f"unexpected tensor {name} {tuple(tensor.shape)}")
            plain = tensor.detach().to("cpu", torch.float32).contiguous()
            file.write(plain.numpy().data)
    if (missing := next(expected, None)) is not None:
        raise ValueError(f"missing tensor {missing[0]}")
    return file.digest, file.num_bytes


class TensorFile(Mapping[str, torch.Tensor]):
    """Lazy mapping from name to tensor, on the CPU."""

    def __init__(self, path: Path):
        self.path = path
        self._file = safe_open(str(path), framework="pt")
        self._names = dict.fromkeys(self._file.keys())

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
