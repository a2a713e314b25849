"""RMS normalization (Zhang and Sennrich 2019, arXiv:1910.07467), alone and fused with a residual addition.

T tokens, H values per token, P programs. With r = 1 / sqrt(mean(x^2) + eps) and w the weight (plus its offset):
    y = x r w        dx = r (w dy) - x r^3 / H * sum(w dy x)        dw = sum over tokens of dy x r
Saved for the backward pass: x and r, not the normed values.
"""

# tl.constexpr is a variable if triton is not installed.
# pyright: reportInvalidTypeForm=false

from typing import Any

import torch
from torch import Tensor

from tunesmith.kernels import exhausted
from tunesmith.kernels.language import jit, num_programs, product_type, rows_of, tile_of, tl


def rms_norm(hidden_TH: Tensor, weight_H: Tensor, eps: float, *, weight_offset: float = 0.0) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * (weight_offset + weight) over the H values of each token (Zhang and Sennrich
    2019, arXiv:1910.07467).

    hidden: [..., H]; weight: [H]. Mean and division are computed in fp32 (fp64 for fp64 input) and rounded to the
    input's dtype before the weight is applied, as in transformers' LLaMA; Gemma stores weight - 1 (weight_offset 1).
    Returns hidden's shape and dtype. The reference, in plain PyTorch.
    """
    wide = torch.promote_types(hidden_TH.dtype, torch.float32)
    hidden = hidden_TH.to(wide)
    normed = (hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + eps)).to(hidden_TH.dtype)
    weight = weight_H + weight_offset if weight_offset else weight_H
    return (weight * normed).to(hidden_TH.dtype)


def add_rms_norm(
    hidden_TH: Tensor, residual_TH: Tensor, weight_H: Tensor, eps: float, *, weight_offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return (rms_norm(hidden + residual), hidden + residual); the second is the next residual.

    hidden, residual: [..., H] of one dtype; weight: [H]. The reference, in plain PyTorch.
    """
    summed_TH = hidden_TH + residual_TH
    return rms_norm(summed_TH, weight_H, eps, weight_offset=weight_offset), summed_TH


def rms_norm_triton(hidden_TH: Tensor, weight_H: Tensor, eps: float, *, weight_offset: float = 0.0) -> Tensor:
    """`rms_norm` as one Triton kernel. hidden: [..., H] of fp32, bf16 or fp16; computed in fp32 and rounded once, after
    the weight."""
    normed_TH, _, _ = _forward_op(rows_of(hidden_TH), None, weight_H, eps, weight_offset)
    return normed_TH.view(hidden_TH.shape)


def add_rms_norm_triton(
    hidden_TH: Tensor, residual_TH: Tensor, weight_H: Tensor, eps: float, *, weight_offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`add_rms_norm` as one Triton kernel. hidden, residual: [..., H], both fp32, bf16 or fp16."""
    rows_TH, residual = rows_of(hidden_TH), rows_of(residual_TH)
    normed_TH, summed_TH, _ = _forward_op(rows_TH, residual, weight_H, eps, weight_offset)
    return normed_TH.view(hidden_TH.shape), summed_TH.view(hidden_TH.shape)


def rms_norm_cpu(hidden_TH: Tensor, weight_H: Tensor, eps: float, *, weight_offset: float = 0.0) -> Tensor:
    """`rms_norm` on a CPU with few passes over memory; saves its input and one scale per token.

    hidden: [..., H] in fp32 or bf16. Computed in fp32 and rounded once, under autocast to its dtype: the products that
    read the result need no cast.
    """
    return _CpuRmsNorm.apply(hidden_TH, weight_H, eps, weight_offset, product_type(hidden_TH))  # type: ignore[return-value]


def inverse_rms(hidden_TH: Tensor, eps: float) -> Tensor:
    """Return 1 / sqrt(mean(x^2) + eps) of each token in fp32, [..., 1]."""
    norm_T1 = torch.linalg.vector_norm(hidden_TH, dim=-1, keepdim=True, dtype=torch.float32)
    return norm_T1.square_().div_(hidden_TH.shape[-1]).add_(eps).rsqrt_()


class _CpuRmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TH: Tensor, weight_H: Tensor, eps: float, offset: float, dtype: torch.dtype) -> Tensor:
        scale_T1 = inverse_rms(hidden_TH, eps)
        ctx.save_for_backward(hidden_TH, weight_H, scale_T1)
        ctx.offset = offset
        return (hidden_TH * scale_T1).mul_(weight_H + offset if offset else weight_H).to(dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dnormed_TH: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight_H, scale_T1 = ctx.saved_tensors
        hidden_TH, dnormed_TH = hidden.float(), dnormed_TH.float()
        dhidden_TH = dweight_H = None
        if ctx.needs_input_grad[1]:
            dweight_H = (dnormed_TH * hidden_TH).mul_(scale_T1).reshape(-1, len(weight_H)).sum(0).to(weight_H.dtype)
        if ctx.needs_input_grad[0]:
            dhidden_TH = dnormed_TH * (weight_H + ctx.offset if ctx.offset else weight_H)
            mean_T1 = torch.linalg.vecdot(dhidden_TH, hidden_TH).unsqueeze(-1).div_(-hidden_TH.shape[-1])
            mean_T1 *= scale_T1.square()
            dhidden_TH = dhidden_TH.addcmul_(hidden_TH, mean_T1).mul_(scale_T1).to(hidden.dtype)
        return dhidden_TH, dweight_H, None, None, None


@jit
def _forward_kernel(
    hidden,
    residual,
    weight,
    normed,
    summed,
    scale,
    stride_hidden,
    stride_residual,
    num_rows,
    num_values,
    eps,
    offset,
    HAS_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per tile of ROWS tokens. normed, summed: contiguous; scale: fp32 [T]."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < num_rows)[:, None] & (column < num_values)[None, :]
    write = row[:, None] * num_values + column[None, :]
    x = tl.load(hidden + row[:, None] * stride_hidden + column[None, :], mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        read = row[:, None] * stride_residual + column[None, :]
        x += tl.load(residual + read, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(summed.dtype.element_ty)
        tl.store(summed + write, rounded, mask=inside)
        x = rounded.to(tl.float32)
    r = 1.0 / tl.sqrt(tl.sum(x * x, 1) / num_values + eps)
    tl.store(scale + row, r, mask=row < num_rows)
    w = tl.load(weight + column, mask=column < num_values, other=0.0).to(tl.float32) + offset
    tl.store(normed + write, (x * r[:, None] * w[None, :]).to(normed.dtype.element_ty), mask=inside)


@jit
def _backward_kernel(
    dnormed,
    dsummed,
    hidden,
    weight,
    scale,
    dhidden,
    dweight,
    stride_dnormed,
    stride_dsummed,
    stride_hidden,
    num_rows,
    num_values,
    tiles_each,
    offset,
    HAS_RESIDUAL: tl.constexpr,
    WANTS_WEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program handles `tiles_each` tiles of ROWS tokens. dhidden: contiguous; dweight: fp32 [P, H], a sum per
    program."""
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    w = tl.load(weight + column, mask=column < num_values, other=0.0).to(tl.float32) + offset
    dw = tl.zeros((ROWS, BLOCK), tl.float32)
    for number in range(tiles_each):
        row = (program * tiles_each + number) * ROWS + tl.arange(0, ROWS)
        inside = (row < num_rows)[:, None] & (column < num_values)[None, :]
        read = row[:, None] * stride_hidden + column[None, :]
        x = tl.load(hidden + read, mask=inside, other=0.0).to(tl.float32)
        read = row[:, None] * stride_dnormed + column[None, :]
        dy = tl.load(dnormed + read, mask=inside, other=0.0).to(tl.float32)
        r = tl.load(scale + row, mask=row < num_rows, other=0.0)
        wdy = w[None, :] * dy
        mean = tl.sum(wdy * x, 1) / num_values
        dx = r[:, None] * wdy - x * (r * r * r * mean)[:, None]
        if HAS_RESIDUAL:
            read = row[:, None] * stride_dsummed + column[None, :]
            dx += tl.load(dsummed + read, mask=inside, other=0.0).to(tl.float32)
        write = row[:, None] * num_values + column[None, :]
        tl.store(dhidden + write, dx.to(dhidden.dtype.element_ty), mask=inside)
        if WANTS_WEIGHT:
            dw += dy * x * r[:, None]
    if WANTS_WEIGHT:
        tl.store(dweight + program * num_values + column, tl.sum(dw, 0), mask=column < num_values)


@torch.library.custom_op("tunesmith::rms_norm", mutates_args=())
def _forward_op(
    hidden_TH: Tensor, residual_TH: Tensor | None, weight_H: Tensor, eps: float, offset: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (normed, sum with the residual (empty without one), 1 / root mean square fp32 [T])."""
    normed_TH, summed_TH, scale_T = _fake_forward(hidden_TH, residual_TH, weight_H, eps, offset)
    num_rows, num_values = hidden_TH.shape
    tile = tile_of(num_values)
    if num_rows:
        _forward_kernel[(-(-num_rows // tile.rows),)](
            hidden_TH,
            residual_TH if residual_TH is not None else hidden_TH,
            weight_H,
            normed_TH,
            summed_TH if residual_TH is not None else normed_TH,
            scale_T,
            hidden_TH.stride(0),
            residual_TH.stride(0) if residual_TH is not None else 0,
            num_rows,
            num_values,
            eps,
            offset,
            HAS_RESIDUAL=residual_TH is not None,
            ROWS=tile.rows,
            BLOCK=tile.block,
            num_warps=tile.warps,
        )
    return normed_TH, summed_TH, scale_T


@_forward_op.register_fake
def _fake_forward(hidden_TH, residual_TH, weight_H, eps, offset):
    summed_TH = hidden_TH.new_empty(hidden_TH.shape if residual_TH is not None else (0,))
    return hidden_TH.new_empty(hidden_TH.shape), summed_TH, hidden_TH.new_empty(len(hidden_TH), dtype=torch.float32)


@torch.library.custom_op("tunesmith::rms_norm_backward", mutates_args=())
def _backward_op(
    dnormed_TH: Tensor,
    dsummed_TH: Tensor | None,
    hidden_TH: Tensor,
    weight_H: Tensor,
    scale_T: Tensor,
    offset: float,
    wants_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Return (gradient of both hidden and residual, gradient of the weight); the latter is empty if not requested."""
    num_rows, num_values = hidden_TH.shape
    dhidden_TH = hidden_TH.new_empty(hidden_TH.shape)
    tile = tile_of(num_values)
    num_tiles = -(-num_rows // tile.rows)
    # With a frozen weight nothing is summed over tokens: one tile per program.
    programs = num_programs(num_tiles, hidden_TH.device) if wants_weight else num_tiles
    dweight_PH = hidden_TH.new_zeros((programs, num_values) if wants_weight else (0, 0), dtype=torch.float32)
    if num_rows:
        _backward_kernel[(programs,)](
            dnormed_TH,
            dsummed_TH if dsummed_TH is not None else dnormed_TH,
            hidden_TH,
            weight_H,
            scale_T,
            dhidden_TH,
            dweight_PH if wants_weight else scale_T,
            dnormed_TH.stride(0),
            dsummed_TH.stride(0) if dsummed_TH is not None else 0,
            hidden_TH.stride(0),
            num_rows,
            num_values,
            -(-num_tiles // programs),
            offset,
            HAS_RESIDUAL=dsummed_TH is not None,
            WANTS_WEIGHT=wants_weight,
            ROWS=tile.rows,
            BLOCK=tile.block,
            num_warps=tile.warps,
        )
    return dhidden_TH, dweight_PH.sum(0).to(weight_H.dtype)


@_backward_op.register_fake
def _fake_backward(dnormed_TH, dsummed_TH, hidden_TH, weight_H, scale_T, offset, wants_weight):
    return hidden_TH.new_empty(hidden_TH.shape), weight_H.new_empty(len(weight_H) if wants_weight else 0)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden_TH, residual_TH, weight_H, ctx.eps, ctx.offset = inputs
    ctx.has_residual = residual_TH is not None
    ctx.save_for_backward(output[1] if ctx.has_residual else hidden_TH, weight_H, output[2])


def _plain_backward(ctx: Any, dnormed_TH: Tensor, dsummed_TH: Tensor, hidden_TH: Tensor, weight_H: Tensor) -> Any:
    """The gradients of `_backward_op` from the reference."""
    dhidden_TH, dweight_H = exhausted.gradients(
        lambda hidden, weight: rms_norm(hidden, weight, ctx.eps, weight_offset=ctx.offset),
        (hidden_TH, weight_H),
        (True, ctx.needs_input_grad[2]),
        (dnormed_TH,),
    )
    assert dhidden_TH is not None
    return dhidden_TH + dsummed_TH if ctx.has_residual else dhidden_TH, dweight_H


def _backward(ctx: Any, dnormed_TH: Tensor, dsummed_TH: Tensor, _dscale_T: Tensor) -> tuple[Tensor | None, ...]:
    hidden_TH, weight_H, scale_T = ctx.saved_tensors
    wants_weight = ctx.needs_input_grad[2]
    dsummed = rows_of(dsummed_TH) if ctx.has_residual else None
    dhidden_TH, dweight_H = exhausted.attempt(
        ("rms_norm", "add_rms_norm"),
        lambda: _backward_op(rows_of(dnormed_TH), dsummed, hidden_TH, weight_H, scale_T, ctx.offset, wants_weight),
        lambda: _plain_backward(ctx, dnormed_TH, dsummed_TH, hidden_TH, weight_H),
    )
    return dhidden_TH, dhidden_TH if ctx.has_residual else None, dweight_H if wants_weight else None, None, None


_forward_op.register_autograd(_backward, setup_context=_keep)
