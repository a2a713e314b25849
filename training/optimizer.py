"""AdamW over named parameters; its state is read and written by parameter name."""

from collections.abc import Mapping

import torch

from tunesmith.configs.recipe import Optimization
from tunesmith.training.eight_bit import eight_bit_adamw, is_eight_bit, state_of, values_of

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter, each in its shape."""


def make_optimizer(parameters: Mapping[str, torch.nn.Parameter], optimization: Optimization) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101). Matrices decay; norms and biases never do."""
    matrices = [p for p in parameters.values() if len(full_shape(p)) >= 2]
    vectors = [p for p in parameters.values() if len(full_shape(p)) < 2]
    groups = [
        {"params": matrices, "weight_decay": optimization.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if optimization.optimizer != "adamw":
        return eight_bit_adamw(groups, optimization)
    return torch.optim.AdamW(
        groups,
        lr=optimization.learning_rate,
        betas=optimization.betas,
        eps=optimization.eps,
        fused=True,
    )


def full_shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """The shape of the whole parameter, also where DeepSpeed keeps but a part of it on this rank (`ds_shape`)."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def moment_of(optimizer: torch.optim.Optimizer, tensor: torch.Tensor, moment: str) -> torch.Tensor:
    """One of MOMENTS of a parameter, or of a flat part of many, fp32 in its shape; zeros before the first update."""
    state = optimizer.state.get(tensor)
    if not state:
        return torch.zeros_like(tensor, dtype=torch.float32)
    return values_of(state, moment) if is_eight_bit(optimizer) else state[moment]


def set_moments(
    optimizer: torch.optim.Optimizer, tensor: torch.Tensor, moments: Mapping[str, torch.Tensor], num_updates: int
) -> None:
    """Set the moments of a parameter, or of a flat part of many, as `num_updates` updates have made them. Keeps no
    reference to what it is given."""
    if is_eight_bit(optimizer):
        optimizer.state[tensor] = state_of(optimizer, tensor, moments, num_updates)
        return
    optimizer.state[tensor] = {
        # On the tensor's device: there the fused form reads it.
        "step": torch.tensor(float(num_updates), dtype=torch.float32, device=tensor.device),
        **{moment: moments[moment].to(tensor.device, torch.float32).clone() for moment in MOMENTS},
    }
