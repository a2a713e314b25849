"""AdamW with moments in 8 bits (Dettmers et al. 2021, arXiv:2110.02861), through bitsandbytes.

Blocks of 256 values share a scale; a value is its scale times one of the 256 entries of a fixed code table. Checkpoints
hold the values in fp32, like those of any engine; read back into the same blocks they give the same bits.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tunesmith.configs.sections.optimization import Optimization
from tunesmith.errors import InputError
from tunesmith.kernels.adamw import moment_blocks, nearest_codes, unpacked
from tunesmith.training.optim.groups import ParameterGroup

_NUMBERS = {"exp_avg": 1, "exp_avg_sq": 2}
_TABLES = {"exp_avg": "dynamic", "exp_avg_sq": "udynamic"}


def eight_bit_adamw(groups: Sequence[ParameterGroup], optimization: Optimization) -> torch.optim.Optimizer:
    """Return bitsandbytes' 8-bit AdamW. InputError if bitsandbytes is not installed."""
    try:
        import tunesmith.modeling.quantization.bitsandbytes_light  # noqa: F401  # isort: skip
        from bitsandbytes.optim.adamw import AdamW
    except ImportError as error:
        raise InputError(
            f"optimization.optimizer: {optimization.optimizer} needs bitsandbytes, which is not installed",
            remedy="pip install 'tunesmith[qlora]', or set optimization.optimizer: adamw",
        ) from error
    return AdamW(
        [dict(group) for group in groups],
        lr=optimization.learning_rate,
        betas=optimization.betas,
        eps=optimization.eps,
        optim_bits=8,
        is_paged=optimization.optimizer.startswith("paged"),
    )


def moment_tables(optimization: Optimization) -> torch.Tensor:
    """Return the code tables of first and second moments: fp32 [2, 256], ascending. InputError without bitsandbytes."""
    unused = torch.nn.Parameter(torch.zeros(1))
    optimizer: Any = eight_bit_adamw([{"params": [unused], "weight_decay": 0.0}], optimization)
    optimizer.fill_qmap()
    return torch.stack([optimizer.name2qmap[_TABLES[moment]] for moment in _NUMBERS])


def is_eight_bit(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it is one of bitsandbytes' 8-bit optimizers."""
    return hasattr(optimizer, "name2qmap")


def allocate_eight_bit(optimizer: Any) -> None:
    """Create the moments of every tensor that has none, as bitsandbytes does in the first update of each."""
    if not optimizer.initialized:
        optimizer.check_overrides()
        optimizer.to_gpu()
        optimizer.initialized = True
    for number, group in enumerate(optimizer.param_groups):
        for place, tensor in enumerate(group["params"]):
            if optimizer.state[tensor]:
                continue
            try:
                optimizer.init_state(group, tensor, number, place)
            except Exception:
                del optimizer.state[tensor]  # incomplete
                raise


def values_of(state: Mapping[str, torch.Tensor], moment: str) -> torch.Tensor:
    """Return a moment in fp32 from the optimizer state of a tensor; the moments of small tensors are fp32 already."""
    number = _NUMBERS[moment]
    codes = state[f"state{number}"]
    if codes.dtype == torch.float32:
        return codes
    return unpacked(codes.reshape(-1), state[f"absmax{number}"], state[f"qmap{number}"]).view(codes.shape)


def state_of(
    optimizer: Any, tensor: torch.Tensor, moments: Mapping[str, torch.Tensor], num_updates: int
) -> dict[str, torch.Tensor | int]:
    """Return the optimizer state of a tensor (a parameter, or a flat shard of several) with these moments, fp32 in its
    shape."""
    state: dict[str, torch.Tensor | int] = {"step": num_updates}
    small = tensor.numel() < optimizer.args.min_8bit_size
    for moment, number in _NUMBERS.items():
        values = moments[moment].to(tensor.device)
        buffer = optimizer.get_state_buffer(tensor, dtype=torch.float32 if small else torch.uint8)
        if small:
            buffer.copy_(values)
        else:
            table = optimizer.name2qmap[_TABLES[moment]] = optimizer.name2qmap[_TABLES[moment]].to(tensor.device)
            codes, scales = quantised(values.reshape(-1), table)
            buffer.copy_(codes.view(tensor.shape))
            state |= {f"qmap{number}": table, f"absmax{number}": scales}
        state[f"state{number}"] = buffer
    return state


def quantised(values_N: torch.Tensor, table_256: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize fp32 values [N] to codes uint8 [N] and scales fp32 [blocks]; exact for values that were dequantized from
    such codes and scales.

    The scale of a block is its largest magnitude, whose code stands for 1. If that value is negative, its code stands
    for the lowest entry of the table, not -1: the scale is then found by trying which candidate reproduces every value.
    """
    values_BK = moment_blocks(values_N)
    natural_B = values_BK.abs().amax(1)
    lowest_B = values_BK.amin(1) / table_256[0] if table_256[0] < 0 else natural_B
    scales_B, codes_BK = natural_B, torch.empty_like(values_BK, dtype=torch.uint8)
    solved_B = torch.zeros_like(natural_B, dtype=torch.bool)
    upwards = torch.full_like(lowest_B, torch.inf)
    candidates = (natural_B, lowest_B, torch.nextafter(lowest_B, upwards), torch.nextafter(lowest_B, -upwards))
    for number, trial_B in enumerate(candidates):
        trial_BK = nearest_codes(values_BK, trial_B, table_256)
        exact_B = (table_256[trial_BK] * trial_B[:, None] == values_BK).all(1)
        take_B = exact_B & ~solved_B if number else torch.ones_like(exact_B)
        codes_BK = torch.where(take_B[:, None], trial_BK.to(torch.uint8), codes_BK)
        scales_B = torch.where(take_B, trial_B, scales_B)
        solved_B |= exact_B
    return codes_BK.reshape(-1)[: values_N.numel()], scales_B
