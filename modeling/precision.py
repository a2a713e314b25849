"""Autocast: the dtype in which products are computed."""

import torch
from torch import Tensor


def autocast_to(dtype: torch.dtype | None, device: torch.device) -> torch.autocast:
    """Return an autocast context for `dtype`; disabled for None and float32."""
    low = dtype not in (None, torch.float32)
    return torch.autocast(device.type, dtype=dtype if low else None, enabled=low)


def product_type(x: Tensor) -> torch.dtype:
    """Return autocast's dtype if enabled, else the dtype of x."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
