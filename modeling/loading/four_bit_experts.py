"""Experts in 4 bits (NF4): quantized expert by expert while the model is loaded.

E experts, A and C the dimensions of a matrix as the model stores it ([O, I] or [I, O]).
"""

from functools import partial

import torch
from torch import Tensor, nn

from tunesmith.errors import InputError
from tunesmith.modeling.base_model.experts import MIN_SHARE_IN_4_BITS, is_stacked
from tunesmith.modeling.expert_forward import declares_layout, experts_forward
from tunesmith.modeling.quantization.nf4_stack import stacks_of


def quantises(path: str, module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a parameter of the module is held in 4 bits: matrices of experts whose forward Tunesmith computes. Other
    modules read the parameter in their own forward. path: of the parameter."""
    return is_stacked(path, shape) and declares_layout(module)


def hold_in_four_bits(
    module: nn.Module,
    name: str,
    value_EAC: Tensor,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    double_quantization: bool,
) -> nn.Parameter:
    """Replace a parameter of an experts module by its value in 4 bits. Returns the packed parameter.

    One expert at a time is converted to dtype and moved to the device.
    """
    from tunesmith.modeling.quantization.nf4 import quantised_stack

    stack = quantised_stack(value_EAC, dtype=dtype, device=device, double_quantization=double_quantization)
    delattr(module, name)
    module.add_module(name, stack)
    module.forward = partial(experts_forward, module, adapters={})
    return stack.packed


def require_experts_in_four_bits(model: nn.Module) -> None:
    """Raise InputError if less than 95% of the expert weights are in 4 bits."""
    packed = sum(torch.Size(stack.shape).numel() for stack in stacks_of(model).values())
    others = 0
    for path, parameter in model.named_parameters():
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        others += torch.Size(shape).numel() if is_stacked(path, shape) else 0
    if packed < MIN_SHARE_IN_4_BITS * (packed + others):
        raise InputError(
            f"experts cannot be quantized to 4 bits: {others / (packed + others):.1%} of their weights would stay in "
            f"16 bits, because {type(model).__name__} computes them in a forward of its own",
            where="key method.kind: qlora",
            remedy="use method.kind: lora; parallelism.zero_stage: 3 shards the weights over the processes",
        )


@torch.no_grad()
def round_to_four_bits(model: nn.Module, *, double_quantization: bool) -> None:
    """Replace the values of all weights that QLoRA holds in 4 bits by the dequantized ones, in place and in the dtype
    of the model: what an adapter was trained on, for software that does not hold experts in 4 bits."""
    from tunesmith.modeling.quantization.nf4 import rounded

    head = getattr(model, "get_output_embeddings", lambda: None)()
    for path, module in model.named_modules():
        if type(module) is nn.Linear and module is not head:
            module.weight.copy_(rounded(module.weight, double_quantization=double_quantization))
        for name, parameter in module.named_parameters(recurse=False):
            if quantises(f"{path}.{name}", module, tuple(parameter.shape)):
                for matrix in parameter.unbind(0):
                    values = rounded(matrix.reshape(-1), double_quantization=double_quantization)
                    matrix.copy_(values.view_as(matrix))
