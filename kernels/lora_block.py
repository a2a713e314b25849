"""The two halves of a LLaMA block around its attention, with adapters beside frozen layers, as one operation each.

T tokens, H hidden, I inputs, O outputs of a layer, R rank. What is cheap is computed again in the backward pass instead
of kept: normed values from their input and one number a token, the gated product from gate and up. A block of
SmolLM2-135M keeps 25 KB a token this way, where torch and peft keep 59. Products add into what stands there already.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, silu

from tunesmith.kernels.lora_linear import lora_linear_reference
from tunesmith.kernels.rms_norm import rms_norm
from tunesmith.kernels.swiglu import swiglu


class Adapted(NamedTuple):
    """A frozen linear layer and its adapter."""

    weight_OI: Tensor
    bias_O: Tensor | None
    a_RI: Tensor
    b_OR: Tensor
    scaling: float


def norm_lora_linears_reference(
    hidden_TH: Tensor, norm_H: Tensor, eps: float, weight_offset: float, layers: list[Adapted]
) -> tuple[Tensor, ...]:
    """The layers' outputs for rms_norm(hidden), with plain torch."""
    normed_TH = rms_norm(hidden_TH, norm_H, eps, weight_offset=weight_offset)
    return tuple(lora_linear_reference(normed_TH, *layer) for layer in layers)


def norm_lora_linears(
    hidden_TH: Tensor, norm_H: Tensor, eps: float, weight_offset: float, layers: list[Adapted]
) -> tuple[Tensor, ...]:
    """The layers' outputs for rms_norm(hidden): query, key and value, or gate and up. hidden: [..., H], of the
    weights' type. Gradients for hidden and adapters; the norm's weight and the layers' own are frozen."""
    adapters = [matrix for layer in layers for matrix in (layer.a_RI, layer.b_OR)]
    return _NormLinears.apply(hidden_TH, norm_H, eps, weight_offset, layers, *adapters)  # type: ignore[return-value]


def gated_lora_linear_reference(gate_TI: Tensor, up_TI: Tensor, layer: Adapted) -> Tensor:
    """The layer's output for silu(gate) * up, with plain torch."""
    return lora_linear_reference(swiglu(gate_TI, up_TI), *layer)


def gated_lora_linear(gate_TI: Tensor, up_TI: Tensor, layer: Adapted) -> Tensor:
    """The layer's output for silu(gate) * up. Gradients for gate, up and the adapter."""
    return _GatedLinear.apply(gate_TI, up_TI, layer, layer.a_RI, layer.b_OR)  # type: ignore[return-value]


def _output(x_TI: Tensor, layer: Adapted) -> Tensor:
    y_TO = linear(x_TI, layer.weight_OI, layer.bias_O)
    y_TO.view(-1, y_TO.shape[-1]).addmm_(
        x_TI.view(-1, x_TI.shape[-1]) @ layer.a_RI.T, layer.b_OR.T, alpha=layer.scaling
    )
    return y_TO


def _gradients(
    x_TI: Tensor, doutput: Tensor, layer: Adapted, dx_TI: Tensor | None, wants_x: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """(dx, dA, dB) of one layer; dx is added to what is given. x: rows. The adapter's part of dx runs into it too."""
    dy_TO = doutput.reshape(-1, doutput.shape[-1])
    g_TR = (dy_TO @ layer.b_OR).mul_(layer.scaling)
    if wants_x:
        dx_TI = dy_TO @ layer.weight_OI if dx_TI is None else dx_TI.addmm_(dy_TO, layer.weight_OI)
        dx_TI.addmm_(g_TR, layer.a_RI)
    return dx_TI, g_TR.T @ x_TI, (dy_TO.T @ (x_TI @ layer.a_RI.T)).mul_(layer.scaling)


class _NormLinears(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        hidden_TH: Tensor,
        norm_H: Tensor,
        eps: float,
        offset: float,
        layers: list[Adapted],
        *adapters: Tensor,
    ) -> tuple[Tensor, ...]:
        norm_T1 = torch.linalg.vector_norm(hidden_TH, dim=-1, keepdim=True)
        scale_T1 = norm_T1.square_().div_(hidden_TH.shape[-1]).add_(eps).rsqrt_()
        weight_H = norm_H + offset if offset else norm_H
        ctx.save_for_backward(hidden_TH, scale_T1, weight_H, *adapters)
        ctx.layers = layers
        normed_TH = (hidden_TH * scale_T1).mul_(weight_H)
        return tuple(_output(normed_TH, layer) for layer in layers)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *doutputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, scale, weight_H, *_ = ctx.saved_tensors
        hidden_TH, scale_T1 = hidden.reshape(-1, len(weight_H)), scale.reshape(-1, 1)
        normed_TH = (hidden_TH * scale_T1).mul_(weight_H)
        dx_TH, adapters = None, []
        for doutput, layer in zip(doutputs, ctx.layers, strict=True):
            dx_TH, *gradients = _gradients(normed_TH, doutput, layer, dx_TH, ctx.needs_input_grad[0])
            adapters += gradients
        if dx_TH is not None:
            dx_TH.mul_(weight_H)
            torch.mul(dx_TH, hidden_TH, out=normed_TH)
            mean_T1 = normed_TH.sum(-1, keepdim=True).mul_(scale_T1.square()).div_(-len(weight_H))
            dx_TH = dx_TH.addcmul_(hidden_TH, mean_T1).mul_(scale_T1).view(hidden.shape)
        return dx_TH, None, None, None, None, *adapters


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gate_TI: Tensor, up_TI: Tensor, layer: Adapted, a_RI: Tensor, b_OR: Tensor
    ) -> Tensor:
        ctx.save_for_backward(gate_TI, up_TI, a_RI, b_OR)
        ctx.layer = layer
        return _output(silu(gate_TI).mul_(up_TI), layer)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, doutput: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gate, up, _, _ = ctx.saved_tensors
        gate_TI, up_TI = (t.reshape(-1, t.shape[-1]) for t in (gate, up))
        active_TI = silu(gate_TI)
        product_TI = active_TI * up_TI
        dproduct_TI, da_RI, db_OR = _gradients(product_TI, doutput, ctx.layer, None, True)
        assert dproduct_TI is not None
        dup_TI = active_TI.mul_(dproduct_TI)
        dgate_TI = torch.ops.aten.silu_backward(dproduct_TI.mul_(up_TI), gate_TI)
        return dgate_TI.view(gate.shape), dup_TI.view(up.shape), None, da_RI, db_OR
