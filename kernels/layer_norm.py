"""Layer normalization (Ba et al. 2016, arXiv:1607.06450), as in GPT-2 and BERT.

T tokens, H values per token, P programs. With n = (x - mean) r and r = 1 / sqrt(variance + eps):
    y = n w + b        dx = r (w dy - mean(w dy) - n mean(w dy n))        dw = sum of dy n        db = sum of dy
Saved for the backward pass: x, mean and r.
"""

# tl.constexpr is a variable if triton is not installed.
# pyright: reportInvalidTypeForm=false

from typing import Any

import torch
from torch import Tensor

from tunesmith.kernels import exhausted
from tunesmith.kernels.language import jit, num_programs, rows_of, tile_of, tl


def layer_norm(hidden_TH: Tensor, weight_H: Tensor, bias_H: Tensor | None, eps: float) -> Tensor:
    """Return (x - mean) / sqrt(variance + eps) * weight + bias over the H values of each token (arXiv:1607.06450).

    hidden: [..., H]; weight, bias: [H]. Returns hidden's shape and dtype. The reference, also used on CPUs: torch's
    operation.
    """
    return torch.nn.functional.layer_norm(hidden_TH, weight_H.shape, weight_H, bias_H, eps)


def layer_norm_triton(hidden_TH: Tensor, weight_H: Tensor, bias_H: Tensor | None, eps: float) -> Tensor:
    """`layer_norm` as one Triton kernel. hidden: [..., H] of fp32, bf16 or fp16; computed in fp32."""
    normed_TH, _, _ = _forward_op(rows_of(hidden_TH), weight_H, bias_H, eps)
    return normed_TH.view(hidden_TH.shape)


@jit
def _forward_kernel(
    hidden,
    weight,
    bias,
    normed,
    mean,
    scale,
    stride,
    num_rows,
    num_values,
    eps,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per tile of ROWS tokens. normed: contiguous; mean, scale: fp32 [T]."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    known = row < num_rows
    inside = known[:, None] & (column < num_values)[None, :]
    x = tl.load(hidden + row[:, None] * stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    m = tl.sum(x, 1) / num_values
    centred = tl.where(inside, x - m[:, None], 0.0)
    r = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / num_values + eps)
    tl.store(mean + row, m, mask=known)
    tl.store(scale + row, r, mask=known)
    w = tl.load(weight + column, mask=column < num_values, other=0.0).to(tl.float32)
    y = centred * r[:, None] * w[None, :]
    if HAS_BIAS:
        y += tl.load(bias + column, mask=column < num_values, other=0.0).to(tl.float32)[None, :]
    write = row[:, None] * num_values + column[None, :]
    tl.store(normed + write, y.to(normed.dtype.element_ty), mask=inside)


@jit
def _backward_kernel(
    dnormed,
    hidden,
    weight,
    mean,
    scale,
    dhidden,
    dweight,
    dbias,
    stride_dnormed,
    stride_hidden,
    num_rows,
    num_values,
    tiles_each,
    WANTS_WEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Each program handles `tiles_each` tiles of ROWS tokens. dhidden: contiguous; dweight, dbias: fp32 [P, H], a sum
    per program."""
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    w = tl.load(weight + column, mask=column < num_values, other=0.0).to(tl.float32)
    dw = tl.zeros((ROWS, BLOCK), tl.float32)
    db = tl.zeros((ROWS, BLOCK), tl.float32)
    for number in range(tiles_each):
        row = (program * tiles_each + number) * ROWS + tl.arange(0, ROWS)
        known = row < num_rows
        inside = known[:, None] & (column < num_values)[None, :]
        read = row[:, None] * stride_hidden + column[None, :]
        x = tl.load(hidden + read, mask=inside, other=0.0).to(tl.float32)
        read = row[:, None] * stride_dnormed + column[None, :]
        dy = tl.load(dnormed + read, mask=inside, other=0.0).to(tl.float32)
        r = tl.load(scale + row, mask=known, other=0.0)
        m = tl.load(mean + row, mask=known, other=0.0)
        n = tl.where(inside, (x - m[:, None]) * r[:, None], 0.0)
        wdy = w[None, :] * dy
        of_mean, of_scale = tl.sum(wdy, 1) / num_values, tl.sum(wdy * n, 1) / num_values
        dx = r[:, None] * (wdy - of_mean[:, None] - n * of_scale[:, None])
        write = row[:, None] * num_values + column[None, :]
        tl.store(dhidden + write, dx.to(dhidden.dtype.element_ty), mask=inside)
        if WANTS_WEIGHT:
            dw += dy * n
            db += dy
    if WANTS_WEIGHT:
        tl.store(dweight + program * num_values + column, tl.sum(dw, 0), mask=column < num_values)
        tl.store(dbias + program * num_values + column, tl.sum(db, 0), mask=column < num_values)


@torch.library.custom_op("tunesmith::layer_norm", mutates_args=())
def _forward_op(
    hidden_TH: Tensor, weight_H: Tensor, bias_H: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (normed, mean fp32 [T], 1 / standard deviation fp32 [T])."""
    normed_TH, mean_T, scale_T = _fake_forward(hidden_TH, weight_H, bias_H, eps)
    num_rows, num_values = hidden_TH.shape
    tile = tile_of(num_values)
    if num_rows:
        _forward_kernel[(-(-num_rows // tile.rows),)](
            hidden_TH,
            weight_H,
            bias_H if bias_H is not None else weight_H,
            normed_TH,
            mean_T,
            scale_T,
            hidden_TH.stride(0),
            num_rows,
            num_values,
            eps,
            HAS_BIAS=bias_H is not None,
            ROWS=tile.rows,
            BLOCK=tile.block,
            num_warps=tile.warps,
        )
    return normed_TH, mean_T, scale_T


@_forward_op.register_fake
def _fake_forward(hidden_TH, weight_H, bias_H, eps):
    by_token = [hidden_TH.new_empty(len(hidden_TH), dtype=torch.float32) for _ in range(2)]
    return hidden_TH.new_empty(hidden_TH.shape), *by_token


@torch.library.custom_op("tunesmith::layer_norm_backward", mutates_args=())
def _backward_op(
    dnormed_TH: Tensor, hidden_TH: Tensor, weight_H: Tensor, mean_T: Tensor, scale_T: Tensor, wants_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of hidden, weight and bias; the latter two are empty if not requested."""
    num_rows, num_values = hidden_TH.shape
    dhidden_TH = hidden_TH.new_empty(hidden_TH.shape)
    tile = tile_of(num_values)
    num_tiles = -(-num_rows // tile.rows)
    programs = num_programs(num_tiles, hidden_TH.device) if wants_weight else num_tiles
    sums_2PH = hidden_TH.new_zeros((2, programs, num_values) if wants_weight else (2, 0, 0), dtype=torch.float32)
    if num_rows:
        _backward_kernel[(programs,)](
            dnormed_TH,
            hidden_TH,
            weight_H,
            mean_T,
            scale_T,
            dhidden_TH,
            sums_2PH[0] if wants_weight else scale_T,
            sums_2PH[1] if wants_weight else scale_T,
            dnormed_TH.stride(0),
            hidden_TH.stride(0),
            num_rows,
            num_values,
            -(-num_tiles // programs),
            WANTS_WEIGHT=wants_weight,
            ROWS=tile.rows,
            BLOCK=tile.block,
            num_warps=tile.warps,
        )
    return dhidden_TH, sums_2PH[0].sum(0).to(weight_H.dtype), sums_2PH[1].sum(0).to(weight_H.dtype)


@_backward_op.register_fake
def _fake_backward(dnormed_TH, hidden_TH, weight_H, mean_T, scale_T, wants_weight):
    by_value = [weight_H.new_empty(len(weight_H) if wants_weight else 0) for _ in range(2)]
    return hidden_TH.new_empty(hidden_TH.shape), *by_value


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden_TH, weight_H, bias_H, ctx.eps = inputs
    ctx.has_bias = bias_H is not None
    ctx.save_for_backward(hidden_TH, weight_H, *output[1:])


def _backward(ctx: Any, dnormed_TH: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
    wants_weight, wants_bias = ctx.needs_input_grad[1], ctx.has_bias and ctx.needs_input_grad[2]
    hidden_TH, weight_H, mean_T, scale_T = ctx.saved_tensors
    wants = wants_weight or wants_bias
    dhidden_TH, dweight_H, dbias_H = exhausted.attempt(
        ("layer_norm",),
        lambda: _backward_op(rows_of(dnormed_TH), hidden_TH, weight_H, mean_T, scale_T, wants),
        lambda: exhausted.gradients(  # the gradient of the bias does not depend on its value
            lambda hidden, weight, bias: layer_norm(hidden, weight, bias, ctx.eps),
            (hidden_TH, weight_H, torch.zeros_like(weight_H)),
            (True, wants, wants),
            (dnormed_TH,),
        ),
    )
    return dhidden_TH, dweight_H if wants_weight else None, dbias_H if wants_bias else None, None


_forward_op.register_autograd(_backward, setup_context=_keep)
