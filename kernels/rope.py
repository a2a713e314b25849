"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in the half-split form of LLaMA.

B batch, H query heads, K key heads, T tokens, D head size, R rotated values of a head, W width of a packed projection.
Scaled variants (Llama 3, YaRN) only change the cos and sin tables. With the halves x1, x2 of a head and c, s of the
tables:
    y1 = x1 c1 - x2 s1        y2 = x2 c2 + x1 s2        dx1 = dy1 c1 + dy2 s2        dx2 = dy2 c2 - dy1 s1
"""

# tl.constexpr is a variable if triton is not installed.
# pyright: reportInvalidTypeForm=false

from functools import partial
from typing import Any

import torch
from torch import Tensor

from tunesmith.kernels import exhausted
from tunesmith.kernels.language import jit, next_power_of_2, product_type, tl


def rope(query_BHTD: Tensor, key_BKTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate dimensions i and i + D/2 of each head by the angle of its position: x cos + rotate_half(x) sin (Su et al.
    2021, arXiv:2104.09864).

    query: [B, H, T, D]; key: [B, K, T, D]; cos, sin: [B or 1, T, D], with each angle twice (first and second half of
    D), as in transformers' rotary embedding; positions restart at 0 with each document. Returns new tensors in the
    shapes and dtypes of query and key. The reference, in plain PyTorch.
    """
    cos_B1TD, sin_B1TD = cos_BTD.unsqueeze(1), sin_BTD.unsqueeze(1)
    return _rotated(query_BHTD, cos_B1TD, sin_B1TD), _rotated(key_BKTD, cos_B1TD, sin_B1TD)


def _rotated(x_BHTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x_BHTD.chunk(2, dim=-1)
    return x_BHTD * cos + torch.cat((-second, first), dim=-1) * sin


def rope_triton(query_BHTD: Tensor, key_BKTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """`rope` for query and key as one Triton kernel, in fp32, bf16 or fp16. Any layout; a copy is made unless the head
    dimension has stride 1."""
    return _rope_op(_together(query_BHTD), _together(key_BKTD), _together(cos_BTD), _together(sin_BTD), False)


def rope_cpu(query_BHTD: Tensor, key_BKTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """`rope` on a CPU: writes the result half by half; saves only the tables. fp32 or bf16; under autocast,
    its dtype."""
    dtype = product_type(query_BHTD)
    return _CpuRope.apply(query_BHTD.to(dtype), key_BKTD.to(dtype), cos_BTD, sin_BTD)  # type: ignore[return-value]


class _CpuRope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _turned(query, cos, sin), _turned(key, cos, sin)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dquery: Tensor, dkey: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        back = _back(sin)
        return _turned(dquery, cos, back), _turned(dkey, cos, back), None, None


def _back(sin: Tensor) -> Tensor:
    """The sine table of the backward pass: dx1 uses the second half's sine, dx2 the first's."""
    return -torch.cat(sin.chunk(2, dim=-1)[::-1], dim=-1)


def _turned(x_BHTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor, out: Tensor | None = None) -> Tensor:
    turned = torch.empty_like(x_BHTD) if out is None else out
    cos_BTD, sin_BTD = cos_BTD.to(x_BHTD.dtype), sin_BTD.to(x_BHTD.dtype)
    (x1, x2), (y1, y2) = x_BHTD.chunk(2, dim=-1), turned.chunk(2, dim=-1)
    (c1, c2), (s1, s2) = cos_BTD.unsqueeze(1).chunk(2, dim=-1), sin_BTD.unsqueeze(1).chunk(2, dim=-1)
    torch.mul(x1, c1, out=y1).addcmul_(x2, s1, value=-1)
    torch.mul(x2, c2, out=y2).addcmul_(x1, s2)
    return turned


def _together(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


@jit
def _rotate(
    source,
    target,
    stride_source,
    stride_target,
    num_heads,
    half,
    c1,
    c2,
    s1,
    s2,
    BACKWARD: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """Rotate all heads of one token."""
    head = tl.arange(0, HEADS).to(tl.int64)[:, None]
    column = tl.arange(0, HALF)[None, :]
    inside = (head < num_heads) & (column < half)
    read = source + head * stride_source + column
    write = target + head * stride_target + column
    x1 = tl.load(read, mask=inside, other=0.0).to(tl.float32)
    x2 = tl.load(read + half, mask=inside, other=0.0).to(tl.float32)
    if BACKWARD:
        y1 = x1 * c1 + x2 * s2
        y2 = x2 * c2 - x1 * s1
    else:
        y1 = x1 * c1 - x2 * s1
        y2 = x2 * c2 + x1 * s2
    tl.store(write, y1.to(target.dtype.element_ty), mask=inside)
    tl.store(write + half, y2.to(target.dtype.element_ty), mask=inside)


@jit
def _rope_kernel(
    query,
    key,
    cos,
    sin,
    query_out,
    key_out,
    query_batch,
    query_head,
    query_token,
    key_batch,
    key_head,
    key_token,
    query_out_batch,
    query_out_head,
    query_out_token,
    key_out_batch,
    key_out_head,
    key_out_token,
    cos_batch,
    cos_token,
    sin_batch,
    sin_token,
    num_tokens,
    num_query_heads,
    num_key_heads,
    half,
    BACKWARD: tl.constexpr,
    QUERY_HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """One program per token: its angles are read once for all heads. Arguments such as query_batch are strides."""
    program = tl.program_id(0).to(tl.int64)
    batch, token = program // num_tokens, program % num_tokens
    column = tl.arange(0, HALF)[None, :]
    inside = column < half
    angle_cos = cos + batch * cos_batch + token * cos_token + column
    angle_sin = sin + batch * sin_batch + token * sin_token + column
    c1 = tl.load(angle_cos, mask=inside, other=0.0).to(tl.float32)
    c2 = tl.load(angle_cos + half, mask=inside, other=0.0).to(tl.float32)
    s1 = tl.load(angle_sin, mask=inside, other=0.0).to(tl.float32)
    s2 = tl.load(angle_sin + half, mask=inside, other=0.0).to(tl.float32)
    _rotate(
        query + batch * query_batch + token * query_token,
        query_out + batch * query_out_batch + token * query_out_token,
        query_head,
        query_out_head,
        num_query_heads,
        half,
        c1,
        c2,
        s1,
        s2,
        BACKWARD,
        QUERY_HEADS,
        HALF,
    )
    _rotate(
        key + batch * key_batch + token * key_token,
        key_out + batch * key_out_batch + token * key_out_token,
        key_head,
        key_out_head,
        num_key_heads,
        half,
        c1,
        c2,
        s1,
        s2,
        BACKWARD,
        KEY_HEADS,
        HALF,
    )


@torch.library.custom_op("tunesmith::rope", mutates_args=())
def _rope_op(
    query_BHTD: Tensor, key_BKTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor, backward: bool
) -> tuple[Tensor, Tensor]:
    """Return query and key rotated or, with `backward`, their gradients rotated back. cos, sin: batch 1 or B."""
    query_out, key_out = torch.empty_like(query_BHTD), torch.empty_like(key_BKTD)
    _launch(query_BHTD, key_BKTD, cos_BTD, sin_BTD, query_out, key_out, backward)
    return query_out, key_out


def _launch(
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    cos_BTD: Tensor,
    sin_BTD: Tensor,
    query_out: Tensor,
    key_out: Tensor,
    backward: bool,
) -> None:
    num_batches, num_query_heads, num_tokens, size = query_BHTD.shape
    num_key_heads = key_BKTD.shape[1]
    if num_batches * num_tokens:
        _rope_kernel[(num_batches * num_tokens,)](
            query_BHTD,
            key_BKTD,
            cos_BTD,
            sin_BTD,
            query_out,
            key_out,
            *(stride for tensor in (query_BHTD, key_BKTD, query_out, key_out) for stride in tensor.stride()[:3]),
            *(
                stride if tensor.shape[dim] > 1 else 0
                for tensor in (cos_BTD, sin_BTD)
                for dim, stride in enumerate(tensor.stride()[:2])
            ),
            num_tokens,
            num_query_heads,
            num_key_heads,
            size // 2,
            BACKWARD=backward,
            QUERY_HEADS=next_power_of_2(num_query_heads),
            KEY_HEADS=next_power_of_2(num_key_heads),
            HALF=next_power_of_2(size // 2),
        )


@_rope_op.register_fake
def _fake_rope(query_BHTD, key_BKTD, cos_BTD, sin_BTD, backward):
    return torch.empty_like(query_BHTD), torch.empty_like(key_BKTD)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[2], inputs[3])


def _backward(ctx: Any, dquery_BHTD: Tensor, dkey_BKTD: Tensor) -> tuple[Tensor | None, ...]:
    cos, sin = ctx.saved_tensors
    dquery, dkey = exhausted.attempt(
        ("rope", "rope_packed"),
        lambda: _rope_op(_together(dquery_BHTD), _together(dkey_BKTD), cos, sin, True),
        lambda: (_turned(dquery_BHTD, cos, _back(sin)), _turned(dkey_BKTD, cos, _back(sin))),
    )
    return dquery, dkey, None, None, None


_rope_op.register_autograd(_backward, setup_context=_keep)


def rope_packed(
    qkv_BTW: Tensor, cos_BTR: Tensor, sin_BTR: Tensor, num_heads: int, num_key_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Split a packed projection (Phi 3) into query, key and value, and rotate the first two as in `rope`.

    qkv: [B, T, W], W = (num_heads + 2 num_key_heads) D; cos, sin: [B or 1, T, R]: only the first R of D values are
    rotated. Returns query [B, H, T, D], key and value [B, K, T, D]. The reference, in plain PyTorch.
    """
    query, key, value = _heads(qkv_BTW, num_heads, num_key_heads)
    size = cos_BTR.shape[-1]
    turned = rope(query[..., :size], key[..., :size], cos_BTR, sin_BTR)
    if size == query.shape[-1]:
        return *turned, value
    query, key = (torch.cat((t, whole[..., size:]), dim=-1) for t, whole in zip(turned, (query, key), strict=True))
    return query, key, value


def rope_packed_cpu(
    qkv_BTW: Tensor, cos_BTR: Tensor, sin_BTR: Tensor, num_heads: int, num_key_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`rope_packed` on a CPU: saves only the tables and writes the three gradients into one buffer. fp32 or bf16, as
    `rope_cpu`."""
    return _PackedRope.apply(qkv_BTW.to(product_type(qkv_BTW)), cos_BTR, sin_BTR, num_heads, num_key_heads, _turn_cpu)  # type: ignore[return-value]


def rope_packed_triton(
    qkv_BTW: Tensor, cos_BTR: Tensor, sin_BTR: Tensor, num_heads: int, num_key_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`rope_packed` with query and key rotated by one Triton kernel and gradients in one buffer. fp32, bf16 or fp16."""
    tables = _together(cos_BTR), _together(sin_BTR)
    return _PackedRope.apply(_together(qkv_BTW), *tables, num_heads, num_key_heads, _launch)  # type: ignore[return-value]


def _heads(qkv_BTW: Tensor, num_heads: int, num_key_heads: int) -> tuple[Tensor, ...]:
    """Views of query, key and value, [B, heads, T, D]."""
    counts = [num_heads, num_key_heads, num_key_heads]
    return qkv_BTW.unflatten(-1, (sum(counts), -1)).transpose(1, 2).split(counts, dim=1)


def _turn_cpu(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, query_out: Tensor, key_out: Tensor, backward: bool
) -> None:
    sin = _back(sin) if backward else sin
    _turned(query, cos, sin, query_out)
    _turned(key, cos, sin, key_out)


class _PackedRope(torch.autograd.Function):
    """The results are copies: views would keep the whole packed projection alive until attention's backward pass."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, num_heads: int, num_key_heads: int, turn: Any):
        ctx.save_for_backward(cos, sin)
        ctx.counts, ctx.turn, ctx.shape = (num_heads, num_key_heads), turn, qkv.shape
        parts = _heads(qkv, num_heads, num_key_heads)
        results = tuple(torch.empty_like(part.transpose(1, 2), memory_format=torch.contiguous_format) for part in parts)
        results = tuple(result.transpose(1, 2) for result in results)
        _turn_parts(parts, results, cos, sin, turn, backward=False)
        return results

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        dqkv = gradients[0].new_empty(ctx.shape)
        parts = tuple(_together(gradient) for gradient in gradients)
        turn = partial(_turn_parts, parts, _heads(dqkv, *ctx.counts), cos, sin, backward=True)
        exhausted.attempt(("rope", "rope_packed"), lambda: turn(turn=ctx.turn), lambda: turn(turn=_turn_cpu))
        return dqkv, None, None, None, None, None


def _turn_parts(
    parts: tuple[Tensor, ...], results: tuple[Tensor, ...], cos: Tensor, sin: Tensor, turn: Any, backward: bool
) -> None:
    size = cos.shape[-1]
    turn(*(t[..., :size] for t in parts[:2]), cos, sin, *(t[..., :size] for t in results[:2]), backward)
    for part, result in zip(parts[:2], results[:2], strict=True):
        if size < part.shape[-1]:
            result[..., size:].copy_(part[..., size:])
    results[2].copy_(parts[2])
