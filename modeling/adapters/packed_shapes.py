"""Adapters on experts in 4 bits: peft reads the shape of what it adapts, which packed storage does not have."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from tunesmith.modeling.quantization.nf4_stack import stacks_of


@contextmanager
def shapes_of_stacks(model: nn.Module) -> Iterator[None]:
    """Replace experts in 4 bits by parameters of the shapes and dtypes that they stand for, without values or memory.

    Linear layers in 4 bits need none: for them peft has layers that know their shape.
    """
    stacks = stacks_of(model)
    for path, stack in stacks.items():
        holder, name = _owner(model, path)
        values = torch.zeros((), dtype=stack.dtype, device=stack.packed.device).expand(stack.shape)
        delattr(holder, name)
        holder.register_parameter(name, nn.Parameter(values, requires_grad=False))
    holders = {path: _owner(model, path) for path in stacks}  # peft wraps them: their paths change
    try:
        yield
    finally:
        for path, stack in stacks.items():
            holder, name = holders[path]
            delattr(holder, name)
            holder.add_module(name, stack)


def _owner(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    return model.get_submodule(parent), name
