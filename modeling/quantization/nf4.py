"""Frozen 4-bit weights: NF4 (Dettmers et al. 2023, arXiv:2305.14314), quantized by bitsandbytes.

T tokens, I inputs, O outputs of a layer.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import InputError, RunFault
from tunesmith.kernels.language import product_type

try:
    import tunesmith.modeling.quantization.bitsandbytes_light  # noqa: F401  # isort: skip
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn.modules import Linear4bit, Params4bit
except ImportError as error:
    raise InputError(
        "method.kind: qlora needs bitsandbytes, which is not installed",
        remedy="pip install 'tunesmith[qlora]', or set method.kind: lora",
    ) from error


class _Product(torch.autograd.Function):
    """input @ weight.T + bias with a 4-bit weight; saves only a reference to the weight for the backward pass.

    bitsandbytes' own function saves a view of the weight's storage, which under ZeRO-3 is the whole gathered weight:
    all layers would stay in memory from forward to backward. The parameter itself is gathered again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input_TI: Tensor,
        weight: nn.Parameter,
        bias_O: Tensor | None,
        dtype: torch.dtype,
        unpack: Callable[[torch.dtype], Tensor] | None,
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtypes, ctx.unpack = (input_TI.dtype, dtype), unpack
        output_TO = input_TI.to(dtype) @ (unpack(dtype) if unpack else dequantised(weight, dtype)).t()
        return output_TO if bias_O is None else output_TO + bias_O.to(dtype)

    @staticmethod
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, None, None, None, None]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        input_dtype, dtype = ctx.dtypes
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        numbers_OI = ctx.unpack(dtype) if ctx.unpack else dequantised(weight, dtype)
        return (grad_TO.to(dtype) @ numbers_OI).to(input_dtype), None, None, None, None


class Nf4Linear(Linear4bit):
    """A frozen 4-bit linear layer; a subclass of Linear4bit, so that peft can adapt it."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to x [..., I] of any floating dtype; computed in autocast's dtype if enabled, else in x's."""
        return self.product(x)

    def product(self, x: Tensor, unpack: Callable[[torch.dtype], Tensor] | None = None) -> Tensor:
        """Like `forward`. unpack: dequantizes the weight to a dtype, instead of bitsandbytes' own function."""
        return _Product.apply(x, self.weight, self.bias, product_type(x), unpack)  # type: ignore[return-value]

    def quantised(self, weight_OI: Tensor, device: str | torch.device) -> nn.Parameter:
        """Return a parameter for this layer: the weight [O, I] quantized on the device with the layer's options."""
        empty: Any = self.weight
        parameter_of: Any = Params4bit
        fresh = parameter_of(
            weight_OI,
            requires_grad=False,
            compress_statistics=empty.compress_statistics,
            quant_type=empty.quant_type,
            module=self,
        )
        return fresh.to(device)


def dequantised(weight: nn.Parameter, dtype: torch.dtype) -> Tensor:
    """Return the dequantized weight of an Nf4Linear, [O, I], in `dtype`."""
    packed = weight.detach().as_subclass(torch.Tensor)
    return dequantize_4bit(packed, weight.quant_state).to(dtype)  # type: ignore[attr-defined]


def empty_nf4_linears(model: nn.Module, *, keep: nn.Module | None, double_quantization: bool) -> None:
    """Replace every linear layer except `keep` (the head) by an Nf4Linear without weights.

    RunFault if there is none: quantization would have no effect.
    """
    linears = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear]
    linears = [(name, module) for name, module in linears if module is not keep]
    if not linears:
        raise RunFault(
            f"{type(model).__name__} has no linear layers that can be quantized", remedy="set method.kind: lora"
        )
    for name, linear in linears:
        parent, _, last = name.rpartition(".")
        empty = Nf4Linear(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            compress_statistics=double_quantization,
            quant_type="nf4",
            device="meta",
        )
        setattr(model.get_submodule(parent), last, empty.requires_grad_(False))
