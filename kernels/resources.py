"""What a program of each Triton kernel needs, and what a program may use on each GPU: which kernels a GPU can run.

The planner reads this too, so nothing here imports torch or Triton. The figures are those of the compiler
(benchmarks/kernel_resources.py); a test compares them.
"""

from collections.abc import Mapping
from typing import NamedTuple

Capability = tuple[int, int]

SHARED_BYTES = {
    75: 64 << 10,
    80: 163 << 10,
    86: 99 << 10,
    89: 99 << 10,
    90: 227 << 10,
    100: 227 << 10,
    120: 99 << 10,
}
"""Shared memory that a program may use, by compute capability without its dot (CUDA C++ programming guide, "Technical
Specifications per Compute Capability")."""
BF16_CAPABILITY, FP16_CAPABILITY = (8, 0), (7, 0)
"""The first compute capabilities with tensor cores for these types."""
FLASH_CAPABILITY, FLASH_LARGEST_HEAD = (8, 0), 256
"""Limits of variable-length flash attention (kernels/varlen_attention.py): compute capability, values per head."""
REGISTERS = 65_536
"""Registers that a program may use, on each of these."""

LONGEST_ROW = {"rms_norm": 16_384, "add_rms_norm": 16_384, "layer_norm": 8_192}
"""Values of a row that a norm's program holds: with more, its registers spill by hundreds of bytes or more."""


class Need(NamedTuple):
    """The most that a program of a kernel needs, over the sizes that it is compiled for. registers: of all threads."""

    registers: int
    shared_bytes: int


NEEDS: dict[str, dict[int, Need]] = {
    "rms_norm._forward_kernel": {
        75: Need(32768, 4096),
        80: Need(31744, 4096),
        86: Need(30720, 4096),
        89: Need(30720, 4096),
        90: Need(32256, 4096),
        100: Need(30720, 4096),
        120: Need(31744, 4096),
    },
    "rms_norm._backward_kernel": {
        75: Need(65536, 16384),
        80: Need(65536, 16384),
        86: Need(65536, 16384),
        89: Need(65536, 16384),
        90: Need(65536, 16384),
        100: Need(65536, 16384),
        120: Need(65536, 16384),
    },
    "layer_norm._forward_kernel": {
        75: Need(29696, 4096),
        80: Need(19968, 4096),
        86: Need(20480, 4096),
        89: Need(20480, 4096),
        90: Need(20480, 4096),
        100: Need(20480, 4096),
        120: Need(20480, 4096),
    },
    "layer_norm._backward_kernel": {
        75: Need(59392, 16384),
        80: Need(52736, 16384),
        86: Need(57856, 16384),
        89: Need(57856, 16384),
        90: Need(53760, 16384),
        100: Need(58368, 16384),
        120: Need(65536, 16384),
    },
    "rope._rope_kernel": {
        75: Need(8192, 0),
        80: Need(8448, 0),
        86: Need(9216, 0),
        89: Need(9216, 0),
        90: Need(8192, 0),
        100: Need(9216, 0),
        120: Need(9216, 0),
    },
    "swiglu._forward_kernel": {
        75: Need(5504, 0),
        80: Need(3968, 0),
        86: Need(4992, 0),
        89: Need(4992, 0),
        90: Need(4096, 0),
        100: Need(3968, 0),
        120: Need(5120, 0),
    },
    "swiglu._backward_kernel": {
        75: Need(6400, 0),
        80: Need(4352, 0),
        86: Need(5376, 0),
        89: Need(5376, 0),
        90: Need(5120, 0),
        100: Need(4096, 0),
        120: Need(4992, 0),
    },
    "cross_entropy._forward_kernel": {
        75: Need(16128, 32),
        80: Need(15360, 32),
        86: Need(15104, 32),
        89: Need(15104, 32),
        90: Need(15104, 32),
        100: Need(16384, 32),
        120: Need(15872, 32),
    },
    "cross_entropy._backward_kernel": {
        75: Need(13312, 0),
        80: Need(8192, 0),
        86: Need(10240, 0),
        89: Need(10240, 0),
        90: Need(8192, 0),
        100: Need(8192, 0),
        120: Need(9984, 0),
    },
    "nf4._dequantise_kernel": {
        75: Need(4608, 4096),
        80: Need(4096, 4096),
        86: Need(4480, 4096),
        89: Need(4480, 4096),
        90: Need(4096, 4096),
        100: Need(4352, 4096),
        120: Need(4864, 4096),
    },
    "adamw._adamw_kernel": {
        75: Need(6656, 0),
        80: Need(6144, 0),
        86: Need(6144, 0),
        89: Need(6144, 0),
        90: Need(6144, 0),
        100: Need(6144, 0),
        120: Need(6144, 0),
    },
    "adamw._adamw_8bit_kernel": {
        75: Need(3968, 16),
        80: Need(4096, 16),
        86: Need(4224, 16),
        89: Need(4224, 16),
        90: Need(4096, 16),
        100: Need(4096, 16),
        120: Need(4480, 16),
    },
}

_BLOCK_NORM = ("rms_norm._forward_kernel", "rms_norm._backward_kernel")
_GATED = ("swiglu._forward_kernel", "swiglu._backward_kernel")
_LOSS = ("cross_entropy._forward_kernel", "cross_entropy._backward_kernel")
KERNELS = {
    "linear_cross_entropy": _LOSS[:1],
    "cross_entropy": _LOSS,
    "rms_norm": _BLOCK_NORM,
    "add_rms_norm": _BLOCK_NORM,
    "layer_norm": ("layer_norm._forward_kernel", "layer_norm._backward_kernel"),
    "rope": ("rope._rope_kernel",),
    "rope_packed": ("rope._rope_kernel",),
    "swiglu": _GATED,
    "swiglu_packed": _GATED,
    "geglu": _GATED,
    "nf4_dequantise": ("nf4._dequantise_kernel",),
    "adamw": ("adamw._adamw_kernel",),
    "adamw_8bit": ("adamw._adamw_8bit_kernel",),
}
"""The Triton kernels that each operation of the dispatch table launches."""


def misfit(operation: str, capability: Capability, needs: Mapping[str, Mapping[int, Need]] = NEEDS) -> str | None:
    """Return why a GPU cannot run the Triton kernels of an operation; None if it can, or if there are none.

    A GPU that is not in the table has the limits of the nearest lower one that is.
    """
    number = capability[0] * 10 + capability[1]
    card = max((known for known in SHARED_BYTES if known <= number), default=None)
    for kernel in KERNELS.get(operation, ()):
        if card is None:
            return f"Triton kernels need compute capability 7.5 or later, this GPU has {capability[0]}.{capability[1]}"
        need = needs[kernel][card]
        if need.shared_bytes > SHARED_BYTES[card]:
            limit = f"a program on sm_{number} may use {SHARED_BYTES[card]:,}"
            return f"{kernel} needs {need.shared_bytes:,} bytes of shared memory, {limit}"
        if need.registers > REGISTERS:
            return f"{kernel} needs {need.registers:,} registers, a program on sm_{number} may use {REGISTERS:,}"
    return None


def misfits(capability: Capability) -> dict[str, str]:
    """Return the operations whose Triton kernels a GPU cannot run, with the reason."""
    reasons = {operation: misfit(operation, capability) for operation in KERNELS}
    return {operation: reason for operation, reason in reasons.items() if reason is not None}
