"""AdamW over named parameters; its state is read and written by parameter name."""

from collections.abc import Mapping

import torch

from tunesmith.configs.recipe import Optimization

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter, each in its shape."""


def make_optimizer(parameters: Mapping[str, torch.nn.Parameter], optimization: Optimization) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101). Matrices decay; norms and biases never do."""
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": optimization.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=optimization.learning_rate,
        betas=optimization.betas,
        eps=optimization.eps,
        fused=True,
    )


def load_moments(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
    num_updates: int,
) -> None:
    """Set the moments, named `<moment>.<parameter name>` in `tensors`, as `num_updates` updates have made them.

    Raises KeyError for a parameter whose moments are missing.
    """
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(num_updates), dtype=torch.float32),
            **{moment: tensors[f"{moment}.{name}"].to(parameter.device, parameter.dtype).clone() for moment in MOMENTS},
        }
