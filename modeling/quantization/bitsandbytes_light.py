"""bitsandbytes, imported without torch's compiler and without its advice on other packages. Import before peft.

peft imports bitsandbytes wherever it is installed. Left alone, that loads torch's compiler (1.4 s and 43 MB a process)
for functions which it would compile at first use, without a word; and on some CPUs it prints that a package called
`kernels`, which it takes ours for, is too old.
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
