"""AdamW over named parameters; its state is read and set by parameter."""

from collections.abc import Mapping

import torch

from tunesmith.configs.sections.optimization import Optimization
from tunesmith.kernels.dispatch import Kernels
from tunesmith.training.optim.eight_bit import (
    allocate_eight_bit,
    eight_bit_adamw,
    is_eight_bit,
    moment_tables,
    state_of,
    values_of,
)
from tunesmith.training.optim.flat_adamw import FlatAdamW
from tunesmith.training.optim.groups import AdamWOptions, ParameterGroup

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter, each in the parameter's shape."""


def update_operations(optimization: Optimization) -> tuple[str, ...]:
    """Return the kernel operations that could update the weights."""
    return {"adamw": ("adamw",), "adamw_8bit": ("adamw", "adamw_8bit")}.get(optimization.optimizer, ())


def make_optimizer(
    parameters: Mapping[str, torch.nn.Parameter], optimization: Optimization, kernels: Kernels | None = None
) -> torch.optim.Optimizer:
    """Return an AdamW optimizer (Loshchilov and Hutter 2019, arXiv:1711.05101).

    Weight decay applies to matrices, never to norms and biases. Uses the run's kernels if they are given and selected,
    otherwise torch's AdamW or, for 8-bit moments, bitsandbytes'.
    """
    matrices = [p for p in parameters.values() if len(full_shape(p)) >= 2]
    vectors = [p for p in parameters.values() if len(full_shape(p)) < 2]
    groups: list[ParameterGroup] = [
        {"params": matrices, "weight_decay": optimization.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if kernels is not None and _has_kernels(kernels, optimization, parameters):
        options: AdamWOptions = {"lr": optimization.learning_rate, "betas": optimization.betas, "eps": optimization.eps}
        tables = moment_tables(optimization) if optimization.optimizer == "adamw_8bit" else None
        return FlatAdamW(groups, options, kernels, tables)
    if optimization.optimizer != "adamw":
        return eight_bit_adamw(groups, optimization)
    return torch.optim.AdamW(
        [dict(group) for group in groups],
        lr=optimization.learning_rate,
        betas=optimization.betas,
        eps=optimization.eps,
        fused=True,
    )


def _has_kernels(kernels: Kernels, optimization: Optimization, parameters: Mapping[str, torch.nn.Parameter]) -> bool:
    """Whether each of the operations has a kernel other than the reference that accepts the parameters."""
    operations, first = update_operations(optimization), next(iter(parameters.values()), None)
    if (
        not operations
        or first is None
        or {(p.device, p.dtype) for p in parameters.values()} != {(first.device, torch.float32)}
    ):
        return False
    return all(kernels.chosen(name, first) is not kernels.reference(name) for name in operations)


def full_shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """Return the shape of the whole parameter, also if DeepSpeed shards it over the ranks (`ds_shape`)."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def moment_of(optimizer: torch.optim.Optimizer, tensor: torch.Tensor, moment: str) -> torch.Tensor:
    """Return one of MOMENTS of a parameter, or of a flat shard of several, fp32 in its shape; zeros before the first
    update."""
    if isinstance(optimizer, FlatAdamW):
        return optimizer.moment(tensor, moment)
    state = optimizer.state.get(tensor)
    if not state:
        return torch.zeros_like(tensor, dtype=torch.float32)
    return values_of(state, moment) if is_eight_bit(optimizer) else state[moment]


def allocate_state(optimizer: torch.optim.Optimizer) -> None:
    """Allocate what updates need, so that memory runs out before the first of them: the moments, zeros before the first
    update as the optimizers themselves create them, and the temporaries of FlatAdamW."""
    if isinstance(optimizer, FlatAdamW):
        optimizer.allocate()
    elif is_eight_bit(optimizer):
        allocate_eight_bit(optimizer)
    else:
        for group in optimizer.param_groups:
            for tensor in group["params"]:
                if not optimizer.state[tensor]:
                    optimizer.state[tensor] = {
                        "step": torch.zeros((), dtype=torch.float32, device=tensor.device),
                        **{moment: torch.zeros_like(tensor) for moment in MOMENTS},
                    }


def set_moments(
    optimizer: torch.optim.Optimizer, tensor: torch.Tensor, moments: Mapping[str, torch.Tensor], num_updates: int
) -> None:
    """Set the moments of a parameter, or of a flat shard of several, as they are after `num_updates` updates.

    Keeps no reference to the given tensors.
    """
    if isinstance(optimizer, FlatAdamW):
        optimizer.set_moments(tensor, moments, num_updates)
        return
    if is_eight_bit(optimizer):
        optimizer.state[tensor] = state_of(optimizer, tensor, moments, num_updates)
        return
    optimizer.state[tensor] = {
        # On the tensor's device: the fused implementation reads it there.
        "step": torch.tensor(float(num_updates), dtype=torch.float32, device=tensor.device),
        **{moment: moments[moment].to(tensor.device, torch.float32).clone() for moment in MOMENTS},
    }
