"""The matrices of a layer's experts in 4 bits (NF4), which are dequantized one expert at a time.

Does not import bitsandbytes, so that any model can be searched for such stacks. E experts, B bytes and N scales of an
expert, M scales of these scales, A and C the dimensions of a matrix as the model stores it ([O, I] or [I, O]).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tunesmith.kernels.nf4 import Nf4

Dequantise = Callable[[Nf4, torch.dtype], Tensor]


class Nf4Stack(nn.Module):
    """Stands in a model for a parameter [E, A, C] of experts. Calling it returns the matrix of one expert.

    experts: each expert's matrix, quantized. shape: [E, A, C]. dequantise: dequantizes one of them.
    """

    packed: nn.Parameter
    """uint8 [E, B]; a parameter, so that ZeRO-3 shards it."""
    table_16: Tensor
    scales_EN: Tensor
    scale_table_256: Tensor | None
    scale_scales_EM: Tensor | None
    scale_offset_E: Tensor | None

    def __init__(self, experts: list[Nf4], shape: tuple[int, ...], dequantise: Dequantise):
        super().__init__()
        first = experts[0]
        self.shape, self.dtype, self.block_sizes = shape, first.dtype, (first.block_size, first.scale_block_size)
        self.dequantise = dequantise
        packed_EB = torch.stack([expert.packed.reshape(-1) for expert in experts])
        self.packed = nn.Parameter(packed_EB, requires_grad=False)
        nested = first.scale_table_256 is not None
        constants = {
            "table_16": first.table_16,
            "scales_EN": torch.stack([expert.scales for expert in experts]),
            "scale_table_256": first.scale_table_256,
            "scale_scales_EM": _stacked([expert.scale_scales for expert in experts]) if nested else None,
            "scale_offset_E": _stacked([expert.scale_offset for expert in experts]) if nested else None,
        }
        for name, tensor in constants.items():
            self.register_buffer(name, tensor, persistent=False)

    def expert(self, number: int) -> Nf4:
        """Return the matrix of an expert, flat, without dequantizing it."""
        return Nf4(
            packed=self.packed.detach()[number],
            scales=self.scales_EN[number],
            table_16=self.table_16,
            shape=(self.shape[1] * self.shape[2],),
            block_size=self.block_sizes[0],
            scale_table_256=self.scale_table_256,
            scale_scales=None if self.scale_scales_EM is None else self.scale_scales_EM[number],
            scale_offset=None if self.scale_offset_E is None else self.scale_offset_E[number],
            scale_block_size=self.block_sizes[1],
            dtype=self.dtype,
        )

    def forward(self, number: int, dtype: torch.dtype) -> Tensor:
        """Return the dequantized matrix of an expert, [A, C]."""
        return self.dequantise(self.expert(number), dtype).view(self.shape[1:])

    @torch.no_grad()
    def whole(self, dtype: torch.dtype) -> Tensor:
        """Return the dequantized matrices of all experts, [E, A, C]."""
        return torch.stack([self(number, self.dtype).to(dtype) for number in range(self.shape[0])])

    def num_bytes(self) -> int:
        """Return the size of codes and scales."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.packed, *self.buffers()))


def _stacked(tensors: list[Tensor | None]) -> Tensor:
    return torch.stack([tensor for tensor in tensors if tensor is not None])


class _Product(torch.autograd.Function):
    """input @ weight.T + bias with the matrix of one expert, which is dequantized again for the backward pass: nothing
    of it is saved."""

    @staticmethod
    def forward(
        ctx, input_SI: Tensor, stack: Nf4Stack, number: int, transposed: bool, bias_O: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        ctx.weight, ctx.dtypes = (stack, number, transposed), (input_SI.dtype, dtype)
        matrix = stack(number, dtype)
        output_SO = input_SI.to(dtype) @ (matrix if transposed else matrix.t())
        return output_SO if bias_O is None else output_SO + bias_O.to(dtype)

    @staticmethod
    def backward(ctx, grad_SO: Tensor):  # type: ignore[override]
        stack, number, transposed = ctx.weight
        input_dtype, dtype = ctx.dtypes
        if not ctx.needs_input_grad[0]:
            return (None,) * 6
        matrix = stack(number, dtype)
        grad_SI = grad_SO.to(dtype) @ (matrix.t() if transposed else matrix)
        return grad_SI.to(input_dtype), None, None, None, None, None


def expert_product(
    input_SI: Tensor, stack: Nf4Stack, number: int, *, transposed: bool, bias_O: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return input @ weight.T + bias, [S, O], for one expert, in dtype. transposed: its matrix is [I, O]."""
    product = _Product.apply(input_SI, stack, number, transposed, bias_O, dtype)
    assert isinstance(product, Tensor)
    return product


def stacks_of(model: nn.Module) -> dict[str, Nf4Stack]:
    """Return the experts in 4 bits, by the path of the parameter that they stand for."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Nf4Stack)}


def parameter_names(module: nn.Module) -> list[str]:
    """Return the names of a module's parameters as in the model without quantization."""
    stacks = {f"{path}.packed": path for path in stacks_of(module)}
    return [stacks.get(name, name) for name, _ in module.named_parameters()]
