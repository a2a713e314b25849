"""In which type a product is computed."""

import torch
from torch import Tensor


def autocast_to(dtype: torch.dtype | None, device: torch.device) -> torch.autocast:
    """Products in bfloat16 where that is asked for; nothing for None and float32."""
    low = dtype not in (None, torch.float32)
    return torch.autocast(device.type, dtype=dtype if low else None, enabled=low)


def product_type(x: Tensor) -> torch.dtype:
    """Autocast's where there is one, else x's own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
