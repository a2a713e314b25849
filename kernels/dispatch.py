"""Kernel dispatch: a table of the implementations of each operation; the first entry that accepts a tensor is used.

A new implementation, e.g. a Triton kernel, is a function in the file of its operation and one entry here, above those
it should take precedence over. All implementations of an operation take the same arguments. The last entry of each
operation is the reference fallback in plain PyTorch: it accepts every tensor, and `kernels: off` selects it. It is
also used where a Triton kernel does not fit the GPU (resources.py), or runs out of resources (exhausted.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from tunesmith.kernels import (
    adamw,
    cross_entropy,
    exhausted,
    geglu,
    layer_norm,
    linear_cross_entropy,
    lora_block,
    lora_linear,
    matmul_attention,
    nf4,
    packed_attention,
    resources,
    rms_norm,
    rope,
    swiglu,
    varlen_attention,
    weight_gradient,
)
from tunesmith.kernels.language import INTERPRETED, computes_on_cpu, product_type, runs_triton, triton

TRITON = "triton"
"""Name of the entries that are Triton kernels."""


@dataclass(frozen=True)
class Implementation:
    """An entry of the table: display name, function, and the tensors that it accepts."""

    name: str
    function: Callable[..., Any]
    accepts: Callable[[Tensor], bool]
    """Whether it accepts the operation's first tensor, by device, dtype and shape."""


def _anything(_tensor: Tensor) -> bool:
    return True


def _cpu_fp32(tensor: Tensor) -> bool:
    """fp32 on a CPU without autocast, which promotes and rounds inside the references."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def _whole_rows(operation: str) -> Callable[[Tensor], bool]:
    """One program holds a row in its registers."""
    return lambda tensor: runs_triton(tensor) and tensor.shape[-1] <= resources.LONGEST_ROW[operation]


@cache
def note_misfits(device: torch.device) -> None:
    """Use the references of the operations whose Triton kernels a GPU cannot run."""
    if device.type == "cuda" and triton is not None:
        for operation, reason in resources.misfits(torch.cuda.get_device_capability(device)).items():
            exhausted.MISFITS.setdefault(operation, reason)


def _codes(tensor: Tensor) -> bool:
    return triton is not None and (tensor.is_cuda or INTERPRETED) and tensor.dtype == torch.uint8


def _triton(function: Callable[..., Any], accepts: Callable[[Tensor], bool] = runs_triton) -> Implementation:
    return Implementation(TRITON, function, accepts)


def _torch(function: Callable[..., Any], name: str = "torch") -> Implementation:
    return Implementation(name, function, _anything)


def _cpu(function: Callable[..., Any], accepts: Callable[[Tensor], bool] = computes_on_cpu) -> Implementation:
    return Implementation("torch, in place and recomputing", function, accepts)


def _cpu_uncast(tensor: Tensor) -> bool:
    return computes_on_cpu(tensor) and product_type(tensor) == tensor.dtype


def _cpu_bf16(tensor: Tensor) -> bool:
    return computes_on_cpu(tensor) and product_type(tensor) == torch.bfloat16


def _trained_on_cpu(weight: Tensor) -> bool:
    """Trained weights are fp32, also if products are in bf16."""
    return computes_on_cpu(weight) and weight.dtype == torch.float32


TABLE: dict[str, list[Implementation]] = {
    "linear_cross_entropy": [
        _triton(linear_cross_entropy.linear_cross_entropy_triton),
        _torch(linear_cross_entropy.linear_cross_entropy, "chunked torch"),
    ],
    "cross_entropy": [_triton(cross_entropy.cross_entropy_triton), _torch(cross_entropy.cross_entropy)],
    "packed_attention": [
        Implementation("flash, one launch", packed_attention.packed_attention_varlen, varlen_attention.accepts),
        Implementation("torch, as matrix products", matmul_attention.packed_attention_matmul, _cpu_bf16),
        _torch(packed_attention.packed_attention, "torch sdpa per document"),
    ],
    "rms_norm": [
        _triton(rms_norm.rms_norm_triton, _whole_rows("rms_norm")),
        _cpu(rms_norm.rms_norm_cpu),
        _torch(rms_norm.rms_norm),
    ],
    "add_rms_norm": [_triton(rms_norm.add_rms_norm_triton, _whole_rows("add_rms_norm")), _torch(rms_norm.add_rms_norm)],
    "layer_norm": [_triton(layer_norm.layer_norm_triton, _whole_rows("layer_norm")), _torch(layer_norm.layer_norm)],
    "rope": [_triton(rope.rope_triton), _cpu(rope.rope_cpu), _torch(rope.rope)],
    "rope_packed": [_triton(rope.rope_packed_triton), _cpu(rope.rope_packed_cpu), _torch(rope.rope_packed)],
    "swiglu": [_triton(swiglu.swiglu_triton), _cpu(swiglu.swiglu_cpu), _torch(swiglu.swiglu)],
    "swiglu_packed": [
        _triton(swiglu.swiglu_packed_triton),
        _cpu(swiglu.swiglu_packed_cpu),
        _torch(swiglu.swiglu_packed),
    ],
    "geglu": [_triton(geglu.geglu_triton), _torch(geglu.geglu)],
    "lora_linear": [
        Implementation("torch, in place and recomputing", lora_linear.lora_linear, lambda x: x.dtype != torch.float64),
        _torch(lora_linear.lora_linear_reference),
    ],
    "norm_lora_linears": [
        _cpu(lora_block.norm_lora_linears, _cpu_uncast),
        _torch(lora_block.norm_lora_linears_reference),
    ],
    "gated_lora_linear": [
        _cpu(lora_block.gated_lora_linear, _cpu_uncast),
        _torch(lora_block.gated_lora_linear_reference),
    ],
    "nf4_dequantise": [
        _triton(nf4.nf4_dequantise_triton, _codes),
        Implementation("torch, byte by byte", nf4.nf4_dequantise_cpu, lambda codes: codes.device.type == "cpu"),
        _torch(nf4.nf4_dequantise),
    ],
    "trained_linear": [
        Implementation("torch, adding in place", weight_gradient.trained_linear_adding, _trained_on_cpu),
        _torch(weight_gradient.trained_linear),
    ],
    "trained_embedding": [
        Implementation("torch, adding in place", weight_gradient.trained_embedding_adding, _trained_on_cpu),
        _torch(weight_gradient.trained_embedding),
    ],
    "adamw": [
        _triton(adamw.adamw_triton_),
        Implementation("torch, fused", adamw.adamw_fused_, _cpu_fp32),
        _torch(adamw.adamw_),
    ],
    "adamw_8bit": [
        _triton(adamw.adamw_8bit_triton_),
        Implementation("torch, in parts", adamw.adamw_8bit_cpu_, _cpu_fp32),
        _torch(adamw.adamw_8bit_),
    ],
}


class Kernels:
    """The kernels of one run.

    selection: `auto`: the whole table; `off`: only the reference of each operation; or a list of operations that use
    the table, with the reference for all others.
    """

    def __init__(self, selection: str | Sequence[str] = "auto"):
        enabled = TABLE if selection == "auto" else () if selection == "off" else selection
        self.off = {operation for operation in TABLE if operation not in enabled}

    def switch_off(self, operation: str) -> None:
        """Use the reference of an operation from now on: the parity check failed, or the engine cannot use its
        kernel."""
        self.off.add(operation)

    def chosen(self, operation: str, tensor: Tensor) -> Implementation:
        """Return the first entry that accepts the operation's first tensor. KeyError for an unknown operation."""
        entries = TABLE[operation]
        note_misfits(tensor.device)
        if operation in self.off or exhausted.reason(operation):
            return entries[-1]
        return next(entry for entry in entries if entry.accepts(tensor))

    def reference(self, operation: str) -> Implementation:
        """Return the reference entry of an operation. KeyError for an unknown operation."""
        return TABLE[operation][-1]

    def choose(self, operation: str, tensor: Tensor) -> Callable[..., Any]:
        """Return the function of the entry that `chosen` returns. If it is a Triton kernel that turns out to need more
        than the GPU has, the reference is called instead, now and from then on."""
        entry = self.chosen(operation, tensor)
        return partial(_or_reference, operation, entry.function) if entry.name == TRITON else entry.function


def _or_reference(operation: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    reference = TABLE[operation][-1].function
    return exhausted.attempt(
        (operation,), lambda: function(*arguments, **options), lambda: reference(*arguments, **options)
    )


_AUTO = Kernels()


def choose(operation: str, tensor: Tensor) -> Callable[..., Any]:
    """Return the first implementation that accepts the operation's first tensor, from the whole table. KeyError for an
    unknown operation."""
    return _AUTO.choose(operation, tensor)
