"""Imports bitsandbytes without torch's compiler and without its warnings about other packages. Import before peft.

peft imports bitsandbytes if it is installed. By default that loads torch's compiler (1.4 s and 43 MB per process) for
functions that it would compile on first use; and on some CPUs it warns that a package called `kernels`, which it
mistakes Tunesmith's for, is too old.
"""

import importlib.util
import logging
from collections.abc import Callable
from typing import Any

import torch


def _uncompiled(function: Callable | None = None, **_options: Any) -> Callable:
    return function if function is not None else lambda inner: inner


logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

if importlib.util.find_spec("bitsandbytes") is not None:
    compiled = torch.compile
    torch.compile = _uncompiled  # type: ignore[assignment]
    try:
        import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compiled
