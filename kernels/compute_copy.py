"""Copies of weights in the dtype of the products, one per weight, for as long as the weight does not change.

Autocast casts every trained weight once per forward pass, and frozen ones at every use. A copy is created at first use
and refreshed after every optimizer step, when an engine calls `expire_copies`: torch's fused AdamW, bitsandbytes and
DeepSpeed write weights without counting it in the version of the tensor. A change of the version or of the storage also
counts.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_COPIES: Any = WeakIdKeyDictionary()
"""Weight -> ((number of expiries, its version, its address, dtype of the copy), copy)."""
_num_expiries = 0


def expire_copies() -> None:
    """Refresh every copy at its next use. To be called after weights were written."""
    global _num_expiries
    _num_expiries += 1


def compute_copy(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the values of a weight in `dtype`, without gradient: the weight itself if it has this dtype, otherwise its
    copy. Callers do not modify it."""
    if weight.dtype == dtype:
        return weight.detach()
    state = (_num_expiries, weight._version, weight.data_ptr(), dtype)
    held = _COPIES.get(weight)
    if held is None or held[0] != state:
        target = held[1] if held is not None and held[1].dtype == dtype and held[1].shape == weight.shape else None
        copy = weight.detach().to(dtype) if target is None else target.copy_(weight.detach())
        _COPIES[weight] = held = (state, copy)
    return held[1]
