"""Dequantization of 4-bit NF4 weights (QLoRA: Dettmers et al. 2023, arXiv:2305.14314).

A weight of N values is stored as 4-bit codes, two per byte (the first in the upper half), with a table of 16 values and
a scale for every block of 64 values. With double quantization the scales are bytes, too: codes into a table of 256
values, with a second scale for every 256 of them, and an offset. The layout is that of bitsandbytes.
"""

# tl.constexpr is a variable if triton is not installed.
# pyright: reportInvalidTypeForm=false

from typing import NamedTuple

import torch
from torch import Tensor

from tunesmith.kernels.language import jit, tl

TILE_BYTES = 1024
"""Bytes per program, in rows of one scale each: 4 KiB of values in bf16."""


class Nf4(NamedTuple):
    """A 4-bit weight in the layout of bitsandbytes."""

    packed: Tensor
    """uint8, N / 2 bytes in any shape."""
    scales: Tensor
    """One per block: fp32, or uint8 codes with double quantization."""
    table_16: Tensor
    """fp32 [16]: the values of the codes."""
    shape: tuple[int, ...]
    block_size: int = 64
    scale_table_256: Tensor | None = None
    scale_scales: Tensor | None = None
    """fp32, one for every scale_block_size scales."""
    scale_offset: Tensor | None = None
    """fp32 scalar."""
    scale_block_size: int = 256
    dtype: torch.dtype = torch.float32
    """Dtype of the weight before quantization."""


def nf4_dequantise(weight: Nf4, dtype: torch.dtype) -> Tensor:
    """Dequantize an NF4 weight (Dettmers et al. 2023, arXiv:2305.14314).

    Returns a tensor of `weight.shape` in `dtype`. The reference, in plain PyTorch.
    """
    packed = weight.packed.reshape(-1)
    codes = torch.stack((packed >> 4, packed & 15), dim=1).reshape(-1).int()[: _count(weight.shape)]
    scales = block_scales(weight).repeat_interleave(weight.block_size)[: len(codes)]
    return (weight.table_16[codes] * scales).to(dtype).view(weight.shape)


def block_scales(weight: Nf4) -> Tensor:
    """Return the scale of each block, fp32 [blocks]."""
    if weight.scale_table_256 is None:
        return weight.scales.float()
    assert weight.scale_scales is not None
    assert weight.scale_offset is not None
    outer = weight.scale_scales.repeat_interleave(weight.scale_block_size)[: weight.scales.numel()]
    return weight.scale_table_256[weight.scales.int()] * outer + weight.scale_offset


def nf4_dequantise_cpu(weight: Nf4, dtype: torch.dtype) -> Tensor:
    """`nf4_dequantise` with one table lookup of 8 bytes for both values of a byte; bitwise equal.

    1536 x 576 values take 0.65 ms on one AVX2 core, `nf4_dequantise` takes 6.6 ms.
    """
    table_16 = weight.table_16
    pairs_256 = torch.stack((table_16.repeat_interleave(16), table_16.repeat(16)), dim=1).view(torch.int64).view(-1)
    numbers = pairs_256.index_select(0, weight.packed.reshape(-1).int()).view(torch.float32)[: _count(weight.shape)]
    scales = block_scales(weight)
    whole = len(numbers) // weight.block_size
    numbers[: whole * weight.block_size].view(whole, weight.block_size).mul_(scales[:whole, None])
    numbers[whole * weight.block_size :].mul_(scales[whole:])
    return numbers.view(weight.shape).to(dtype)


def nf4_dequantise_triton(weight: Nf4, dtype: torch.dtype) -> Tensor:
    """`nf4_dequantise` as one Triton kernel, including double-quantized scales."""
    numbers = _dequantise_op(
        weight.packed,
        weight.scales,
        weight.table_16,
        weight.scale_table_256,
        weight.scale_scales,
        weight.scale_offset,
        weight.block_size,
        weight.scale_block_size,
        _count(weight.shape),
        dtype,
    )
    return numbers.view(weight.shape)


def _count(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


@jit
def block_scale(
    scales,
    scale_table,
    scale_scales,
    scale_offset,
    block,
    inside,
    SCALE_BLOCK: tl.constexpr,
    DOUBLE: tl.constexpr,
):
    """Return the fp32 scales of blocks, given by their numbers (one per row of a tile: read once, not for every
    byte)."""
    scale = tl.load(scales + block, mask=inside, other=0)
    if DOUBLE:
        outer = tl.load(scale_scales + block // SCALE_BLOCK, mask=inside, other=0.0)
        scale = tl.load(scale_table + scale.to(tl.int32)) * outer + tl.load(scale_offset)
    return scale.to(tl.float32)


@jit
def _dequantise_kernel(
    packed,
    scales,
    table,
    scale_table,
    scale_scales,
    scale_offset,
    numbers,
    num_bytes,
    num_values,
    VALUES_BLOCK: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
    DOUBLE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Each program dequantizes ROWS blocks of VALUES_BLOCK values: a tile with a scale per row."""
    BYTES: tl.constexpr = VALUES_BLOCK // 2  # both values of a byte share a scale
    block = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    byte = block[:, None] * BYTES + tl.arange(0, BYTES)[None, :]
    codes = tl.load(packed + byte, mask=byte < num_bytes, other=0).to(tl.int32)
    scale = block_scale(
        scales, scale_table, scale_scales, scale_offset, block, block * BYTES < num_bytes, SCALE_BLOCK, DOUBLE
    )
    first = tl.load(table + (codes >> 4)) * scale[:, None]
    second = tl.load(table + (codes & 15)) * scale[:, None]
    value = block[:, None] * VALUES_BLOCK + tl.arange(0, VALUES_BLOCK)[None, :]
    result = tl.interleave(first, second).to(numbers.dtype.element_ty)
    tl.store(numbers + value, result, mask=value < num_values)


@torch.library.custom_op("tunesmith::nf4_dequantise", mutates_args=())
def _dequantise_op(
    packed: Tensor,
    scales: Tensor,
    table_16: Tensor,
    scale_table_256: Tensor | None,
    scale_scales: Tensor | None,
    scale_offset: Tensor | None,
    block_size: int,
    scale_block_size: int,
    num_values: int,
    dtype: torch.dtype,
) -> Tensor:
    numbers = packed.new_empty(num_values, dtype=dtype)
    double = scale_table_256 is not None
    rows = max(1, 2 * TILE_BYTES // block_size)
    num_blocks = -(-2 * packed.numel() // block_size)
    _dequantise_kernel[(-(-num_blocks // rows),)](
        packed.contiguous(),
        scales,
        table_16,
        scale_table_256 if double else table_16,
        scale_scales if double else table_16,
        scale_offset if double else table_16,
        numbers,
        packed.numel(),
        num_values,
        VALUES_BLOCK=block_size,
        SCALE_BLOCK=scale_block_size,
        DOUBLE=double,
        ROWS=rows,
    )
    return numbers


@_dequantise_op.register_fake
def _fake_dequantise(
    packed, scales, table_16, scale_table_256, scale_scales, scale_offset, block_size, scale_block, num_values, dtype
):
    return packed.new_empty(num_values, dtype=dtype)
