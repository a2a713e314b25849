"""How far two computations of the same values may differ: from the rounding of the precision that both run in."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Limits(NamedTuple):
    """Largest relative differences."""

    loss: float
    """Of losses: logits are rounded a few times, and summed in fp32."""
    gradient: float
    """Of vectors (gradients, logits), by their norms: rounding accumulates over layers, forward and back."""


LIMITS = {
    # 2^-24 a rounding; about a hundred of them add up in a loss, and some thousand in a gradient. Rotary angles and
    # norms are fp32 in every precision, so fp64 is not compared more closely.
    torch.float32: Limits(1.5e-5, 1e-3),
    # 2^-9 and 2^-12: products accumulate in fp32, so that only what lies between them is rounded.
    torch.bfloat16: Limits(2e-2, 2e-1),
    torch.float16: Limits(2.5e-3, 5e-2),
}


def limits_of(compute_dtype: torch.dtype | None, model: nn.Module) -> Limits:
    """Return the limits of a model's products. compute_dtype: of autocast; None: the dtype of its weights."""
    dtype = compute_dtype or next(p.dtype for p in model.parameters() if p.is_floating_point())
    return LIMITS.get(dtype, LIMITS[torch.float32])


def relative_difference(values: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference relative to that of the expected values; infinity if values are not finite."""
    error = torch.linalg.vector_norm(values.double() - expected.double())
    norm = torch.linalg.vector_norm(expected.double())
    if not torch.isfinite(error) or not torch.isfinite(norm):
        return float("inf")
    return float(error / norm) if norm else float("inf") if error else 0.0
