"""Conversion of bitsandbytes' 4-bit parameters to the form that the kernels read.

Depends on bitsandbytes' layout but does not import the package, so that it can be called with any weight.
"""

from typing import Any

import torch
from torch import Tensor

from tunesmith.kernels.nf4 import Nf4


def nf4_of(weight: Tensor) -> Nf4 | None:
    """Return the NF4 weight of a parameter; None if it is not NF4 or has an unsupported layout (FP4, transposed,
    repacked for inference on a CPU).

    Also None on a CPU if a row is not a whole number of blocks: bitsandbytes 0.50.2 uses scales of other blocks then,
    and users of the export will get its results.
    """
    state: Any = getattr(weight, "quant_state", None)
    if state is None or state.quant_type != "nf4" or getattr(state, "packing_format_for_cpu", False):
        return None
    if weight.dtype != torch.uint8 or weight.shape[1:] != (1,) or state.blocksize % 2:
        return None
    if not weight.is_cuda and state.shape[-1] % state.blocksize:
        return None
    return with_state(weight.detach().as_subclass(Tensor), state)


def with_state(packed: Tensor, state: Any) -> Nf4:
    """Return packed values with a QuantState of bitsandbytes as an NF4 weight."""
    nested = state.state2
    return Nf4(
        packed=packed,
        scales=state.absmax,
        table_16=state.code,
        shape=tuple(state.shape),
        block_size=state.blocksize,
        scale_table_256=nested.code if nested is not None else None,
        scale_scales=nested.absmax if nested is not None else None,
        scale_offset=state.offset if nested is not None else None,
        scale_block_size=nested.blocksize if nested is not None else 256,
        dtype=state.dtype,
    )
