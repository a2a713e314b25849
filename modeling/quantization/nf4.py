"""Frozen 4-bit weights: NF4 (Dettmers et al. 2023, arXiv:2305.14314), quantized by bitsandbytes.

T tokens, I inputs, O outputs of a layer, E experts, A and C the dimensions of an expert's matrix as it is stored.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import InputError, RunFault
from tunesmith.kernels.language import product_type
from tunesmith.kernels.nf4 import Nf4
from tunesmith.modeling.quantization.four_bits import with_state
from tunesmith.modeling.quantization.nf4_stack import Nf4Stack

try:
    import tunesmith.modeling.quantization.bitsandbytes_light  # noqa: F401  # isort: skip
    from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit
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


def rounded(weight: Tensor, *, double_quantization: bool) -> Tensor:
    """Return a weight of any shape as it is after quantization, in its own dtype."""
    return dequantize_4bit(*_quantised(weight, double_quantization))


def quantised_stack(
    value_EAC: Tensor, *, dtype: torch.dtype, device: str | torch.device, double_quantization: bool
) -> Nf4Stack:
    """Return the matrices of experts in 4 bits on the device. Each is quantized for itself, flat, in dtype."""
    experts = []
    for value_AC in value_EAC:
        packed, state = _quantised(value_AC.reshape(-1).to(device, dtype), double_quantization)
        experts.append(with_state(packed, state))
    return Nf4Stack(experts, tuple(value_EAC.shape), _by_bitsandbytes)


def _quantised(weight: Tensor, double_quantization: bool) -> tuple[Tensor, Any]:
    return quantize_4bit(weight.detach().contiguous(), compress_statistics=double_quantization, quant_type="nf4")


def _by_bitsandbytes(weight: Nf4, dtype: torch.dtype) -> Tensor:
    """As kernels.nf4.nf4_dequantise."""
    nested = None
    if weight.scale_table_256 is not None:
        nested = QuantState(
            absmax=weight.scale_scales,
            code=weight.scale_table_256,
            blocksize=weight.scale_block_size,
            dtype=torch.float32,
        )
    state = QuantState(
        absmax=weight.scales,
        shape=torch.Size(weight.shape),
        code=weight.table_16,
        blocksize=weight.block_size,
        quant_type="nf4",
        dtype=weight.dtype,
        offset=weight.scale_offset,
        state2=nested,
    )
    return dequantize_4bit(weight.packed[:, None], state).to(dtype)


def empty_nf4_linears(
    model: nn.Module,
    *,
    keep: nn.Module | None,
    double_quantization: bool,
    only: Callable[[str], bool] | None = None,
) -> None:
    """Replace every linear layer except `keep` (the head) by an Nf4Linear without weights.

    only: whether to replace the layer of a name; None: each.
    RunFault if there is none: quantization would have no effect.
    """
    linears = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear]
    linears = [(name, module) for name, module in linears if module is not keep and (only is None or only(name))]
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
