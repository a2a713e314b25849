"""Autocast: the dtype in which products are computed."""

import torch


def autocast_to(dtype: torch.dtype | None, device: torch.device) -> torch.autocast:
    """Return an autocast context for `dtype`; disabled for None and float32."""
    low = dtype not in (None, torch.float32)
    return torch.autocast(device.type, dtype=dtype if low else None, enabled=low)
