"""SwiGLU, the gated activation of LLaMA's feed-forward block (Shazeer 2020, arXiv:2002.05202), and the Triton kernel of
all gated activations.

T tokens, I values per token. y = f(gate) up;  dup = dy f(gate);  dgate = dy up f'(gate). Saved for the backward pass:
the inputs; f is recomputed.
"""

# tl.constexpr is a variable if triton is not installed.
# pyright: reportInvalidTypeForm=false

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from tunesmith.kernels import exhausted
from tunesmith.kernels.language import jit, rows_of, tl

BLOCK = 1024
"""Values per program: two loads and one store of 2 KiB each in bf16."""
OPERATIONS = ("swiglu", "swiglu_packed", "geglu")
"""Operations that launch the kernels of this file."""
SILU, GELU, GELU_TANH = 0, 1, 2
"""The activation f: x / (1 + exp(-x)); x * Phi(x); the latter with the tanh approximation of Phi."""


def swiglu(gate_TI: Tensor, up_TI: Tensor) -> Tensor:
    """Return silu(gate) * up with silu(x) = x / (1 + exp(-x)), elementwise (Shazeer 2020, arXiv:2002.05202).

    gate, up: [..., I]. Returns their shape and dtype. The reference, in plain PyTorch.
    """
    return silu(gate_TI) * up_TI


def swiglu_triton(gate_TI: Tensor, up_TI: Tensor) -> Tensor:
    """`swiglu` as one Triton kernel. gate, up: [..., I], both fp32, bf16 or fp16; rows may be strided (halves of a
    packed projection)."""
    return gated(gate_TI, up_TI, SILU)


def swiglu_packed_triton(gate_up_T2I: Tensor) -> Tensor:
    """`swiglu_packed` as one Triton kernel; both gradients are written into one buffer. fp32, bf16 or fp16."""
    return gated_packed(gate_up_T2I, SILU)


def swiglu_packed(gate_up_T2I: Tensor) -> Tensor:
    """`swiglu` of a packed projection: gate and up are the halves of [..., 2 I]. Returns [..., I]. The reference."""
    return swiglu(*gate_up_T2I.chunk(2, dim=-1))


def swiglu_packed_cpu(gate_up_T2I: Tensor) -> Tensor:
    """`swiglu_packed` on a CPU: saves only its input and writes both gradients into one buffer. fp32 or bf16."""
    return _CpuSwigluPacked.apply(gate_up_T2I)  # type: ignore[return-value]


class _CpuSwigluPacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_T2I: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_T2I)
        gate_TI, up_TI = gate_up_T2I.chunk(2, dim=-1)
        return silu(gate_TI).mul_(up_TI)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, doutput_TI: Tensor) -> Tensor:  # type: ignore[override]
        (gate_up_T2I,) = ctx.saved_tensors
        gate_TI, up_TI = gate_up_T2I.chunk(2, dim=-1)
        dgate_up_T2I = torch.empty_like(gate_up_T2I, memory_format=torch.contiguous_format)
        dgate_TI, dup_TI = dgate_up_T2I.chunk(2, dim=-1)
        torch.mul(silu(gate_TI), doutput_TI, out=dup_TI)
        torch.ops.aten.silu_backward.grad_input(doutput_TI * up_TI, gate_TI, grad_input=dgate_TI)
        return dgate_up_T2I


def swiglu_cpu(gate_TI: Tensor, up_TI: Tensor) -> Tensor:
    """`swiglu` on a CPU: saves only its two inputs and recomputes silu(gate) in the backward pass. fp32 or bf16."""
    return _CpuSwiglu.apply(gate_TI, up_TI)  # type: ignore[return-value]


class _CpuSwiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_TI: Tensor, up_TI: Tensor) -> Tensor:
        ctx.save_for_backward(gate_TI, up_TI)
        return silu(gate_TI).mul_(up_TI)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, doutput_TI: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        gate_TI, up_TI = ctx.saved_tensors
        dup_TI = silu(gate_TI).mul_(doutput_TI)
        dgate_TI = doutput_TI * up_TI
        torch.ops.aten.silu_backward.grad_input(dgate_TI, gate_TI, grad_input=dgate_TI)
        return dgate_TI, dup_TI


def gated(gate_TI: Tensor, up_TI: Tensor, activation: int) -> Tensor:
    """Return f(gate) * up, computed by Triton. gate, up: [..., I]; activation: SILU, GELU or GELU_TANH."""
    return _gated_op(rows_of(gate_TI), rows_of(up_TI), activation).view(gate_TI.shape)


def gated_packed(gate_up_T2I: Tensor, activation: int) -> Tensor:
    """Return f(first half) * second half of [..., 2 I] along the last dimension, [..., I], computed by Triton."""
    output_TI = _packed_op(rows_of(gate_up_T2I), activation)
    return output_TI.view(*gate_up_T2I.shape[:-1], output_TI.shape[1])


@jit
def _activated(x, ACTIVATION: tl.constexpr):
    """Return (f(x), f'(x)) in fp32."""
    if ACTIVATION == 0:
        s = tl.sigmoid(x)
        value = x * s
        slope = s * (1.0 + x * (1.0 - s))
    elif ACTIVATION == 1:
        phi = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        value = x * phi
        slope = phi + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    else:
        # tanh(u) = 2 sigmoid(2u) - 1, so (1 + tanh(u)) / 2 = sigmoid(2u); u = sqrt(2 / pi) (x + 0.044715 x^3)
        s = tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
        value = x * s
        slope = s + x * s * (1.0 - s) * 1.5957691216057308 * (1.0 + 0.134145 * x * x)
    return value, slope


@jit
def _forward_kernel(
    gate, up, output, stride_gate, stride_up, num_values, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr
):
    """Grid: (tokens, blocks of values). output: contiguous."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < num_values
    g = tl.load(gate + row * stride_gate + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * stride_up + column, mask=inside, other=0.0).to(tl.float32)
    value, _slope = _activated(g, ACTIVATION)
    tl.store(output + row * num_values + column, (value * u).to(output.dtype.element_ty), mask=inside)


@jit
def _backward_kernel(
    doutput,
    gate,
    up,
    dgate,
    dup,
    stride_doutput,
    stride_gate,
    stride_up,
    stride_gradient,
    num_values,
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: (tokens, blocks of values). dgate, dup: row stride stride_gradient."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < num_values
    dy = tl.load(doutput + row * stride_doutput + column, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + row * stride_gate + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * stride_up + column, mask=inside, other=0.0).to(tl.float32)
    value, slope = _activated(g, ACTIVATION)
    tl.store(dgate + row * stride_gradient + column, (dy * u * slope).to(dgate.dtype.element_ty), mask=inside)
    tl.store(dup + row * stride_gradient + column, (dy * value).to(dup.dtype.element_ty), mask=inside)


def _launch_forward(gate_TI: Tensor, up_TI: Tensor, activation: int) -> Tensor:
    num_rows, num_values = gate_TI.shape
    output_TI = gate_TI.new_empty(gate_TI.shape)
    if output_TI.numel():
        _forward_kernel[(num_rows, -(-num_values // BLOCK))](
            gate_TI,
            up_TI,
            output_TI,
            gate_TI.stride(0),
            up_TI.stride(0),
            num_values,
            ACTIVATION=activation,
            BLOCK=BLOCK,
        )
    return output_TI


def _launch_backward(
    doutput_TI: Tensor, gate_TI: Tensor, up_TI: Tensor, dgate_TI: Tensor, dup_TI: Tensor, activation: int
) -> None:
    num_rows, num_values = gate_TI.shape
    if gate_TI.numel():
        _backward_kernel[(num_rows, -(-num_values // BLOCK))](
            doutput_TI,
            gate_TI,
            up_TI,
            dgate_TI,
            dup_TI,
            doutput_TI.stride(0),
            gate_TI.stride(0),
            up_TI.stride(0),
            dgate_TI.stride(0),
            num_values,
            ACTIVATION=activation,
            BLOCK=BLOCK,
        )


@torch.library.custom_op("tunesmith::gated", mutates_args=())
def _gated_op(gate_TI: Tensor, up_TI: Tensor, activation: int) -> Tensor:
    return _launch_forward(gate_TI, up_TI, activation)


@_gated_op.register_fake
def _fake_gated(gate_TI, up_TI, activation):
    return gate_TI.new_empty(gate_TI.shape)


@torch.library.custom_op("tunesmith::gated_backward", mutates_args=())
def _gated_backward_op(doutput_TI: Tensor, gate_TI: Tensor, up_TI: Tensor, activation: int) -> tuple[Tensor, Tensor]:
    dgate_TI, dup_TI = gate_TI.new_empty(gate_TI.shape), up_TI.new_empty(up_TI.shape)
    _launch_backward(doutput_TI, gate_TI, up_TI, dgate_TI, dup_TI, activation)
    return dgate_TI, dup_TI


@_gated_backward_op.register_fake
def _fake_gated_backward(doutput_TI, gate_TI, up_TI, activation):
    return gate_TI.new_empty(gate_TI.shape), up_TI.new_empty(up_TI.shape)


@torch.library.custom_op("tunesmith::gated_packed", mutates_args=())
def _packed_op(gate_up_T2I: Tensor, activation: int) -> Tensor:
    gate_TI, up_TI = gate_up_T2I.chunk(2, dim=1)
    return _launch_forward(gate_TI, up_TI, activation)


@_packed_op.register_fake
def _fake_packed(gate_up_T2I, activation):
    return gate_up_T2I.new_empty(len(gate_up_T2I), gate_up_T2I.shape[1] // 2)


@torch.library.custom_op("tunesmith::gated_packed_backward", mutates_args=())
def _packed_backward_op(doutput_TI: Tensor, gate_up_T2I: Tensor, activation: int) -> Tensor:
    dgate_up_T2I = gate_up_T2I.new_empty(gate_up_T2I.shape)
    _launch_backward(doutput_TI, *gate_up_T2I.chunk(2, dim=1), *dgate_up_T2I.chunk(2, dim=1), activation)  # type: ignore[misc]
    return dgate_up_T2I


@_packed_backward_op.register_fake
def _fake_packed_backward(doutput_TI, gate_up_T2I, activation):
    return gate_up_T2I.new_empty(gate_up_T2I.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.activation = inputs
    ctx.save_for_backward(*tensors)


def _plain(activation: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The gated activation in plain PyTorch."""
    if activation == SILU:
        return swiglu
    approximate = "tanh" if activation == GELU_TANH else "none"
    return lambda gate_TI, up_TI: torch.nn.functional.gelu(gate_TI, approximate=approximate) * up_TI


def _backward(ctx: Any, doutput_TI: Tensor) -> tuple[Tensor | None, ...]:
    return *exhausted.attempt(
        OPERATIONS,
        lambda: _gated_backward_op(rows_of(doutput_TI), *ctx.saved_tensors, ctx.activation),
        lambda: exhausted.gradients(_plain(ctx.activation), ctx.saved_tensors, (True, True), (doutput_TI,)),
    ), None


def _packed_backward(ctx: Any, doutput_TI: Tensor) -> tuple[Tensor | None, ...]:
    plain = _plain(ctx.activation)
    dgate_up_T2I = exhausted.attempt(
        OPERATIONS,
        lambda: _packed_backward_op(rows_of(doutput_TI), *ctx.saved_tensors, ctx.activation),
        lambda: exhausted.gradients(
            lambda packed: plain(*packed.chunk(2, dim=1)), ctx.saved_tensors, (True,), (doutput_TI,)
        )[0],
    )
    return dgate_up_T2I, None


_gated_op.register_autograd(_backward, setup_context=_keep)
_packed_op.register_autograd(_packed_backward, setup_context=_keep)
