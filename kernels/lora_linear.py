"""A frozen linear layer and its LoRA adapter (Hu et al. 2021, arXiv:2106.09685) as one operation.

T tokens, I inputs, O outputs, R rank. With s the scaling:
    y = x W^T + b + s (x A^T) B^T      g = s dy B      dx = dy W + g A      dA = g^T x      dB = s dy^T (x A^T)
Saved for the backward pass: x and the parameters. x A^T (R values per token) is recomputed, and both sums accumulate in
the existing product: the adapter's output and its input gradient are never materialized. The frozen weight gets no
gradient, and W may be in 4 bits (nf4.py).
"""

# tl.constexpr is a variable if triton is not installed.
# pyright: reportInvalidTypeForm=false

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunesmith.kernels.language import INTERPRETED, jit, next_power_of_2, rows_of, tl
from tunesmith.kernels.nf4 import Nf4, block_scale, nf4_dequantise, nf4_dequantise_cpu, nf4_dequantise_triton

FEW_TOKENS = 256
"""Up to this number of tokens a 4-bit weight is dequantized inside the product: writing and reading the dense weight
would dominate."""


def lora_linear_reference(
    input_TI: Tensor, weight_OI: Tensor | Nf4, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scaling: float
) -> Tensor:
    """Reference of `lora_linear` in plain PyTorch, computed as in peft. Same arguments and results."""
    weight = nf4_dequantise(weight_OI, input_TI.dtype) if isinstance(weight_OI, Nf4) else weight_OI
    base = torch.nn.functional.linear(input_TI, weight, bias_O)
    return base + torch.nn.functional.linear(torch.nn.functional.linear(input_TI, a_RI), b_OR) * scaling


def lora_linear(
    input_TI: Tensor, weight_OI: Tensor | Nf4, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scaling: float
) -> Tensor:
    """Apply a frozen linear layer with its LoRA adapter (Hu et al. 2021, arXiv:2106.09685), with torch's products.

    input: [..., I] of any floating dtype; weight: frozen, [O, I] or in 4 bits; bias: frozen, [O]; a: [R, I]; b: [O, R].
    Weight and adapter are cast to the input's dtype. Returns [..., O] in that dtype. Gradients for input and adapter.
    """
    return _LoraLinear.apply(input_TI, a_RI, b_OR, weight_OI, bias_O, scaling, False)  # type: ignore[return-value]


def lora_linear_triton(
    input_TI: Tensor, weight_OI: Tensor | Nf4, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scaling: float
) -> Tensor:
    """`lora_linear` with its forward pass as one Triton kernel, which reads the input once for layer and adapter and
    dequantizes a 4-bit weight on the fly. input: fp32, bf16 or fp16."""
    return _LoraLinear.apply(input_TI, a_RI, b_OR, weight_OI, bias_O, scaling, True)  # type: ignore[return-value]


def dense_weight(weight: Tensor | Nf4, like: Tensor) -> Tensor:
    """Return the weight [O, I] in the dtype of `like`: dequantized if in 4 bits, not copied if it has that dtype."""
    if isinstance(weight, Nf4):
        on_device = nf4_dequantise_triton if like.is_cuda or INTERPRETED else nf4_dequantise_cpu
        return on_device(weight, like.dtype)
    return weight.to(like.dtype)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        input_TI: Tensor,
        a_RI: Tensor,
        b_OR: Tensor,
        weight: Tensor | Nf4,
        bias_O: Tensor | None,
        scaling: float,
        fused: bool,
    ) -> Tensor:
        ctx.save_for_backward(input_TI, a_RI, b_OR)
        ctx.weight, ctx.scaling = weight, scaling
        x_TI = rows_of(input_TI)
        a, b = a_RI.to(x_TI.dtype), b_OR.to(x_TI.dtype)
        if fused:
            y_TO = _fused(x_TI, weight, bias_O, a, b, scaling)
        else:
            y_TO = torch.nn.functional.linear(x_TI, dense_weight(weight, x_TI), bias_O)
            y_TO.addmm_(x_TI @ a.T, b.T, alpha=scaling)
        return y_TO.view(*input_TI.shape[:-1], len(b_OR))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, doutput_TO: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        input_TI, a_RI, b_OR = ctx.saved_tensors
        x_TI = rows_of(input_TI)
        dy_TO = rows_of(doutput_TO)
        a, b = a_RI.to(x_TI.dtype), b_OR.to(x_TI.dtype)
        g_TR = (dy_TO @ b).mul_(ctx.scaling)
        dinput = da_RI = db_OR = None
        if ctx.needs_input_grad[0]:
            dinput = (dy_TO @ dense_weight(ctx.weight, x_TI)).addmm_(g_TR, a).view(input_TI.shape)
        if ctx.needs_input_grad[1]:
            da_RI = (g_TR.T @ x_TI).to(a_RI.dtype)
        if ctx.needs_input_grad[2]:
            db_OR = (dy_TO.T @ (x_TI @ a.T)).mul_(ctx.scaling).to(b_OR.dtype)
        return dinput, da_RI, db_OR, None, None, None, None


@jit
def _fused_kernel(
    x,
    weight,
    bias,
    a,
    b,
    y,
    scales,
    table,
    scale_table,
    scale_scales,
    scale_offset,
    scaling,
    stride_x,
    stride_weight,
    stride_a,
    stride_b,
    num_tokens,
    num_inputs,
    num_outputs,
    rank,
    HAS_BIAS: tl.constexpr,
    NF4: tl.constexpr,
    VALUES_BLOCK: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
    DOUBLE: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Grid: (blocks of tokens, blocks of outputs). y: contiguous. UPCAST: for the interpreter, whose bf16 products are
    wrong."""
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    output = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    factor = tl.arange(0, BLOCK_R)
    x_row = x + token.to(tl.int64)[:, None] * stride_x
    a_row = a + factor.to(tl.int64)[:, None] * stride_a
    total = tl.zeros((BLOCK_T, BLOCK_O), tl.float32)
    low = tl.zeros((BLOCK_T, BLOCK_R), tl.float32)
    for start in range(0, num_inputs, BLOCK_I):
        column = start + tl.arange(0, BLOCK_I)
        inside = column[None, :] < num_inputs
        x_block = tl.load(x_row + column[None, :], mask=(token[:, None] < num_tokens) & inside, other=0.0)
        a_block = tl.load(a_row + column[None, :], mask=(factor[:, None] < rank) & inside, other=0.0)
        if NF4:
            byte_column = start // 2 + tl.arange(0, BLOCK_I // 2)
            byte = output.to(tl.int64)[:, None] * (num_inputs // 2) + byte_column[None, :]
            known = (output[:, None] < num_outputs) & (byte_column[None, :] < num_inputs // 2)
            codes = tl.load(weight + byte, mask=known, other=0).to(tl.int32)
            scale = block_scale(
                scales, scale_table, scale_scales, scale_offset, byte * 2 // VALUES_BLOCK, known, SCALE_BLOCK, DOUBLE
            )
            scale = tl.where(known, scale, 0.0)
            first = tl.load(table + (codes >> 4)) * scale
            second = tl.load(table + (codes & 15)) * scale
            w_block = tl.interleave(first, second).to(x_block.dtype)
        else:
            w_row = weight + output.to(tl.int64)[:, None] * stride_weight
            w_block = tl.load(w_row + column[None, :], mask=(output[:, None] < num_outputs) & inside, other=0.0)
        if UPCAST:
            x_block, a_block, w_block = x_block.to(tl.float32), a_block.to(tl.float32), w_block.to(tl.float32)
        total = tl.dot(x_block, tl.trans(w_block), total, input_precision="ieee")
        low = tl.dot(x_block, tl.trans(a_block), low, input_precision="ieee")
    b_read = b + output.to(tl.int64)[:, None] * stride_b + factor[None, :]
    b_block = tl.load(b_read, mask=(output[:, None] < num_outputs) & (factor[None, :] < rank), other=0.0)
    low = (low * scaling).to(b_block.dtype)
    if UPCAST:
        low, b_block = low.to(tl.float32), b_block.to(tl.float32)
    total = tl.dot(low, tl.trans(b_block), total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias + output, mask=output < num_outputs, other=0.0).to(tl.float32)[None, :]
    write = y + token.to(tl.int64)[:, None] * num_outputs + output[None, :]
    known = (token[:, None] < num_tokens) & (output[None, :] < num_outputs)
    tl.store(write, total.to(y.dtype.element_ty), mask=known)


def _fused(
    x_TI: Tensor, weight: Tensor | Nf4, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scaling: float
) -> Tensor:
    """Launch the kernel. A 4-bit weight with an odd number of inputs is dequantized first: its rows start within a
    byte."""
    num_tokens, num_inputs = x_TI.shape
    num_outputs, rank = b_OR.shape
    if isinstance(weight, Nf4) and num_inputs % 2:
        weight = nf4_dequantise_triton(weight, x_TI.dtype)
    nf4 = weight if isinstance(weight, Nf4) else None
    numbers = weight.packed if isinstance(weight, Nf4) else rows_of(weight.to(x_TI.dtype))
    double = nf4 is not None and nf4.scale_table_256 is not None
    a_RI, b_OR = rows_of(a_RI), rows_of(b_OR)
    y_TO = x_TI.new_empty(num_tokens, num_outputs)
    block_t, block_o, block_i = 64, 128, 64
    if num_tokens:
        _fused_kernel[(-(-num_tokens // block_t), -(-num_outputs // block_o))](
            x_TI,
            numbers,
            bias_O if bias_O is not None else x_TI,
            a_RI,
            b_OR,
            y_TO,
            nf4.scales if nf4 else x_TI,
            nf4.table_16 if nf4 else x_TI,
            nf4.scale_table_256 if nf4 and double else x_TI,
            nf4.scale_scales if nf4 and double else x_TI,
            nf4.scale_offset if nf4 and double else x_TI,
            scaling,
            x_TI.stride(0),
            0 if nf4 else numbers.stride(0),
            a_RI.stride(0),
            b_OR.stride(0),
            num_tokens,
            num_inputs,
            num_outputs,
            rank,
            HAS_BIAS=bias_O is not None,
            NF4=nf4 is not None,
            VALUES_BLOCK=nf4.block_size if nf4 else 64,
            SCALE_BLOCK=nf4.scale_block_size if nf4 else 256,
            DOUBLE=double,
            UPCAST=INTERPRETED,
            BLOCK_T=block_t,
            BLOCK_O=block_o,
            BLOCK_I=block_i,
            BLOCK_R=max(16, next_power_of_2(rank)),
            num_warps=8,
            num_stages=3,
        )
    return y_TO
