"""Which implementation of an operation runs where: one table, read from the top.

A new implementation (a Triton kernel, say) is a function in its operation's file and one line here, above the one it
is to replace.
All implementations of an operation take the same arguments; the last line of each accepts everything.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tunesmith.kernels import cross_entropy, linear_cross_entropy, packed_attention, rms_norm, rope, swiglu


@dataclass(frozen=True)
class Implementation:
    name: str
    function: Callable[..., Any]
    accepts: Callable[[Tensor], bool]
    """By device, type and shape of the operation's first tensor."""


def _anything(_tensor: Tensor) -> bool:
    return True


TABLE: dict[str, list[Implementation]] = {
    "linear_cross_entropy": [Implementation("chunked torch", linear_cross_entropy.linear_cross_entropy, _anything)],
    "cross_entropy": [Implementation("torch", cross_entropy.cross_entropy, _anything)],
    "packed_attention": [Implementation("torch sdpa per document", packed_attention.packed_attention, _anything)],
    "rms_norm": [Implementation("torch", rms_norm.rms_norm, _anything)],
    "rope": [Implementation("torch", rope.rope, _anything)],
    "swiglu": [Implementation("torch", swiglu.swiglu, _anything)],
}


def choose(operation: str, tensor: Tensor) -> Callable[..., Any]:
    """The first implementation of `operation` that accepts its first tensor. KeyError for an unknown operation."""
    return _chosen(operation, tensor).function


def describe(tensor: Tensor) -> dict[str, str]:
    """Operation -> name of the implementation that a tensor of this device and type gets; for the report."""
    return {operation: _chosen(operation, tensor).name for operation in TABLE}


def _chosen(operation: str, tensor: Tensor) -> Implementation:
    return next(implementation for implementation in TABLE[operation] if implementation.accepts(tensor))
