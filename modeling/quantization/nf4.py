"""Frozen weights in 4 bits: NF4 (Dettmers et al. 2023, arXiv:2305.14314), quantised by bitsandbytes.

T tokens, I inputs, O outputs of a layer.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import InputError, RunFault
from tunesmith.modeling.precision import product_type

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
    """input @ weight.T + bias with the weight in 4 bits; nothing is kept for the backward pass but the weight itself.

    bitsandbytes' own keeps a view of the weight's storage, which under ZeRO-3 is the whole gathered weight: every
    layer's would then live from forward to backward. A parameter is kept by reference, and is gathered again.
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
    """A frozen linear layer in 4 bits; a Linear4bit to peft, which adapts it."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., I], of any float type. The product is taken in autocast's type where there is one, else in x's."""
        return self.product(x)

    def product(self, x: Tensor, unpack: Callable[[torch.dtype], Tensor] | None = None) -> Tensor:
        """`forward`; unpack: gives the weight's numbers in a type, in place of bitsandbytes' own function."""
        return _Product.apply(x, self.weight, self.bias, product_type(x), unpack)  # type: ignore[return-value]

    def quantised(self, weight_OI: Tensor, device: str | torch.device) -> nn.Parameter:
        """The parameter for this layer: a weight quantised on the device, as the layer's own options say."""
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
    """The weight of an Nf4Linear as the numbers that it stands for, [O, I]."""
    packed = weight.detach().as_subclass(torch.Tensor)
    return dequantize_4bit(packed, weight.quant_state).to(dtype)  # type: ignore[attr-defined]


def empty_nf4_linears(model: nn.Module, *, keep: nn.Module | None, double_quantization: bool) -> None:
    """Put an Nf4Linear without weights in the place of every linear layer but `keep` (the head).

    RunFault where there is none: nothing would be saved.
    """
    linears = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear]
    linears = [(name, module) for name, module in linears if module is not keep]
    if not linears:
        raise RunFault(
            f"{type(model).__name__} has no linear layers that 4 bits are known for", remedy="set method.kind: lora"
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
