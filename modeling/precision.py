"""Precisions of a run as dtypes, and autocast: the dtype in which products are computed."""

import torch

from tunesmith.kernels.resources import BF16_CAPABILITY

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""By `compute.precision` of a plan."""


def dtype_of(precision: str) -> torch.dtype:
    """Return the dtype of products in a precision of a plan."""
    return DTYPES[precision]


def autocast_dtype(precision: str) -> torch.dtype | None:
    """Return the dtype for `autocast_to`; None in fp32."""
    return None if precision == "fp32" else DTYPES[precision]


def inference_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of a model that is only run: fp32 on a CPU, bf16 on a GPU with tensor cores for it, otherwise
    fp16."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= BF16_CAPABILITY else torch.float16


def autocast_to(dtype: torch.dtype | None, device: torch.device) -> torch.autocast:
    """Return an autocast context for `dtype`; disabled for None and float32."""
    low = dtype not in (None, torch.float32)
    return torch.autocast(device.type, dtype=dtype if low else None, enabled=low)
