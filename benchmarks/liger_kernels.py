"""Operations of liger-kernel, with which ours are compared."""

from collections.abc import Callable
from typing import Any


def liger() -> dict[str, Callable[..., Any]]:
    """Return liger-kernel's operations with Tunesmith's signatures; empty if it is not installed."""
    try:
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction  # pyright: ignore[reportMissingImports]
        from liger_kernel.ops.rope import LigerRopeFunction  # pyright: ignore[reportMissingImports]
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {}
    return {
        "rms_norm": lambda x, w, eps: LigerRMSNormFunction.apply(x, w, eps, 0.0, "llama", False),
        "rope": lambda q, k, cos, sin: LigerRopeFunction.apply(q, k, cos, sin),
        "swiglu": LigerSiLUMulFunction.apply,
    }
