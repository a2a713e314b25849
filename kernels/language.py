"""Optional import of Triton, and helpers shared by the kernels.

Kernels load any dtype and compute in fp32. Offsets are 64-bit: a row number times a stride exceeds 2^31 in real batches
(8,192 tokens of 262,144 logits). TRITON_INTERPRET=1, set before the first import, runs kernels on CPU tensors (slowly,
for tests).
"""

import os
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Fused multiply-add, as on every card so far: the default of Triton changes with 3.10, and rounding with it.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


class _Never(Exception):
    """Stands for an exception of Triton where it is not installed."""


try:
    import triton as _triton
    import triton.language as _language
    from triton.runtime.errors import OutOfResources as _OutOfResources
except ImportError:  # installed without the extra `triton`
    _triton = _language = None
    _OutOfResources = _Never

triton: Any = _triton
tl: Any = _language or SimpleNamespace(constexpr=int)  # for annotations of kernels that are never called

OutOfResources: type[Exception] = _OutOfResources
"""Raised by a launch that needs more registers, shared memory or threads than the device has."""

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether this process runs Triton kernels in the interpreter."""

TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes that the kernels load and store."""


def jit(function: Any) -> Any:
    """triton.jit if Triton is installed, else the function unchanged (it is never called then)."""
    return function if triton is None else triton.jit(function)


def runs_triton(tensor: Tensor) -> bool:
    """Whether a Triton kernel accepts this tensor: fp32, bf16 or fp16, on CUDA, or on the CPU with the interpreter."""
    return triton is not None and (tensor.is_cuda or INTERPRETED) and tensor.dtype in TYPES


def product_type(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which products with the tensor are computed: autocast's if enabled, else the tensor's."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def computes_on_cpu(tensor: Tensor) -> bool:
    """Whether the forms for CPUs accept this tensor: fp32 or bf16 on a CPU, with products in fp32 or bf16."""
    types = (torch.float32, torch.bfloat16)
    return tensor.device.type == "cpu" and tensor.dtype in types and product_type(tensor) in types


def next_power_of_2(number: int) -> int:
    """Return the smallest power of 2 that is not less than `number`."""
    return 1 << max(0, number - 1).bit_length()


def num_warps(block: int) -> int:
    """Return the warps of a program that holds one row of `block` values (as in Liger Kernel, arXiv:2410.10989)."""
    return 4 if block < 2048 else 8 if block < 8192 else 16 if block < 32768 else 32


def equal_parts(count: int, limit: int) -> list[slice]:
    """Split `count` rows into parts of at most `limit` rows; an empty list for 0 rows.

    The parts are equal: a last part of a few rows would cost as much as a full one.
    """
    number = -(-count // limit)
    return [slice(count * part // number, count * (part + 1) // number) for part in range(number)]


def rows_of(tensor: Tensor) -> Tensor:
    """Reshape [..., H] to [T, H] with stride 1 along H: a view if the layout allows it, otherwise a copy."""
    rows_TH = tensor.reshape(-1, tensor.shape[-1])
    return rows_TH if rows_TH.stride(1) == 1 or rows_TH.shape[1] == 1 else rows_TH.contiguous()


def shaped(rows_TO: Tensor, like: Tensor) -> Tensor:
    """Return new rows in the leading shape of another tensor, [..., O]. The result of an autograd function: a view
    could not be changed in place afterwards, as some models do (Gemma 3n)."""
    return torch.ops.aten._unsafe_view(rows_TO, [*like.shape[:-1], rows_TO.shape[-1]])


class Tile(NamedTuple):
    """Rows and columns that a program of a row-wise kernel holds, both powers of 2, and its warps."""

    rows: int
    block: int
    warps: int


TILE_VALUES = 4096
"""Values of a tile of short rows: 16 per thread of 8 warps, in 16-byte loads of bf16."""


def tile_of(num_values: int) -> Tile:
    """Return the tile for rows of `num_values`: several short rows, so that every thread loads 16 bytes at a time."""
    block = next_power_of_2(num_values)
    rows = max(1, TILE_VALUES // block)
    return Tile(rows, block, num_warps(rows * block))


PROGRAMS_PER_MULTIPROCESSOR = 4


def num_programs(num_tiles: int, device: torch.device) -> int:
    """Return the number of programs for a reduction over tiles, each with its own partial sum: as many as fit the
    device at a time."""
    if device.type == "cuda":
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
        return max(1, min(num_tiles, PROGRAMS_PER_MULTIPROCESSOR * multiprocessors))
    return max(1, min(num_tiles, 4))
