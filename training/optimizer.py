"""AdamW over named parameters; its state is read and written by parameter name."""

from collections.abc import Mapping

import torch

from tunesmith.configs.recipe import Optimization


def make_optimizer(parameters: Mapping[str, torch.nn.Parameter], optimization: Optimization) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101). Matrices decay; norms and biases (one dimension) never do."""
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


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    """The moments as `exp_avg.<name>` and `exp_avg_sq.<name>`, fp32, shaped as the parameter. Empty before the first step."""
    return {
        f"{moment}.{name}": optimizer.state[parameter][moment]
        for name, parameter in parameters.items()
        if parameter in optimizer.state
        for moment in ("exp_avg", "exp_avg_sq")
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
    num_updates: int,
) -> None:
    """Set the moments from `optimizer_tensors`' form; `num_updates` is the number of updates that made them.

    Raises KeyError for a parameter whose moments are missing.
    """
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(num_updates), dtype=torch.float32),
            "exp_avg": tensors[f"exp_avg.{name}"].to(parameter.device, parameter.dtype).clone(),
            "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(parameter.device, parameter.dtype).clone(),
        }
