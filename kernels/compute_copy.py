"""Copies of weights in the dtype of the products, one per weight, for as long as the weight does not change.

Autocast casts every trained weight once per forward pass, and frozen ones at every use. A copy is created at first use
and refreshed when the version of its weight (torch's counter of in-place changes) or its storage has changed: once per
optimizer step. Code that changes a weight through other tensors calls `torch.autograd.graph.increment_version`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_COPIES: Any = WeakIdKeyDictionary()
"""Weight -> ((its version, its address, dtype of the copy), copy)."""


def compute_copy(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the values of a weight in `dtype`, without gradient: the weight itself if it has this dtype, otherwise its
    copy. Callers do not modify it."""
    if weight.dtype == dtype:
        return weight.detach()
    state = (weight._version, weight.data_ptr(), dtype)
    held = _COPIES.get(weight)
    if held is None or held[0] != state:
        target = held[1] if held is not None and held[0][2] == dtype and held[1].shape == weight.shape else None
        copy = weight.detach().to(dtype) if target is None else target.copy_(weight.detach())
        _COPIES[weight] = held = (state, copy)
    return held[1]
