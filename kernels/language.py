"""Triton where it is installed, and what its kernels here have in common.

Kernels load in any type and compute in fp32. Addresses are 64 bits wide: a row number times a stride passes 2^31 in
real batches (8,192 tokens of 262,144 logits). TRITON_INTERPRET=1, set before the first import, runs kernels on CPU
tensors (slowly, for tests).
"""

import os
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

try:
    import triton as _triton
    import triton.language as _language
except ImportError:  # a CPU machine without the extra `triton`
    _triton = _language = None

triton: Any = _triton
tl: Any = _language or SimpleNamespace(constexpr=int)  # the annotations of functions that nothing will call

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether this process runs Triton's kernels in its interpreter."""

TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the kernels load and store."""


def jit(function: Any) -> Any:
    """triton.jit; where Triton is missing the function stays as it is, and nothing calls it."""
    return function if triton is None else triton.jit(function)


def runs_triton(tensor: Tensor) -> bool:
    """Whether a Triton kernel can take this tensor: on a CUDA device, or on the CPU where the interpreter was asked
    for."""
    return triton is not None and (tensor.is_cuda or INTERPRETED) and tensor.dtype in TYPES


def next_power_of_2(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def num_warps(block: int) -> int:
    """Warps of a program that holds one row of `block` values (Liger Kernel's steps, arXiv:2410.10989)."""
    return 4 if block < 2048 else 8 if block < 8192 else 16 if block < 32768 else 32


def equal_parts(count: int, most: int) -> list[slice]:
    """Of at most `most` rows each, none where there are no rows. Equal: no last one of a few rows, whose products would
    cost as much as a whole one's."""
    number = -(-count // most)
    return [slice(count * part // number, count * (part + 1) // number) for part in range(number)]


def rows_of(tensor: Tensor) -> Tensor:
    """[..., H] as [T, H] with neighbours in memory along H: a view where the layout allows one, otherwise a copy."""
    rows_TH = tensor.reshape(-1, tensor.shape[-1])
    return rows_TH if rows_TH.stride(1) == 1 or rows_TH.shape[1] == 1 else rows_TH.contiguous()


def num_programs(rows: Tensor) -> int:
    """Programs that share the rows where each keeps a sum of its own: as many as there are multiprocessors."""
    if rows.is_cuda:
        return min(len(rows), torch.cuda.get_device_properties(rows.device).multi_processor_count)
    return min(len(rows), 4)
