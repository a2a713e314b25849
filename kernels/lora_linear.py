"""A frozen linear layer and its LoRA adapter (Hu et al. 2021, arXiv:2106.09685) as one operation.

T tokens, I inputs, O outputs, R rank. With s the scaling:
    y = x W^T + b + s (x A^T) B^T      g = s dy B      dx = dy W + g A      dA = g^T x      dB = s dy^T (x A^T)
Saved for the backward pass: x and the parameters. x A^T (R values per token) is recomputed, and both sums accumulate in
the existing product: the adapter's output and its input gradient are never materialized. The frozen weight gets no
gradient, and W may be in 4 bits (nf4.py).
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunesmith.kernels import exhausted
from tunesmith.kernels.language import INTERPRETED, rows_of, shaped
from tunesmith.kernels.nf4 import Nf4, nf4_dequantise, nf4_dequantise_cpu, nf4_dequantise_triton


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
    return _LoraLinear.apply(input_TI, a_RI, b_OR, weight_OI, bias_O, scaling)  # type: ignore[return-value]


def dense_weight(weight: Tensor | Nf4, like: Tensor) -> Tensor:
    """Return the weight [O, I] in the dtype of `like`: dequantized if in 4 bits, not copied if it has that dtype."""
    if isinstance(weight, Nf4):
        if like.is_cuda or INTERPRETED:
            return exhausted.attempt(
                ("nf4_dequantise",),
                partial(nf4_dequantise_triton, weight, like.dtype),
                partial(nf4_dequantise, weight, like.dtype),
            )
        return nf4_dequantise_cpu(weight, like.dtype)
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
    ) -> Tensor:
        ctx.save_for_backward(input_TI, a_RI, b_OR)
        ctx.weight, ctx.scaling = weight, scaling
        x_TI = rows_of(input_TI)
        a, b = a_RI.to(x_TI.dtype), b_OR.to(x_TI.dtype)
        y_TO = torch.nn.functional.linear(x_TI, dense_weight(weight, x_TI), bias_O)
        y_TO.addmm_(x_TI @ a.T, b.T, alpha=scaling)
        return shaped(y_TO, input_TI)

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
        return dinput, da_RI, db_OR, None, None, None
