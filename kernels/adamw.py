"""AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) over flat groups, with moments in fp32 or in 8 bits.

N values of a group, B blocks of 256 values. With bias corrections c1 = 1 - b1^t, c2 = 1 - b2^t of update t:
    m <- b1 m + (1 - b1) g       v <- b2 v + (1 - b2) g^2       p <- p (1 - lr wd) - lr (m / c1) / (sqrt(v / c2) + eps)
With 8-bit moments (Dettmers et al. 2021, arXiv:2110.02861) a block of 256 moments shares a scale, and a moment is its
scale times one of the 256 entries of a code table in ascending order. Parameters and moments are updated in place;
gradients are not modified.
"""

# tl.constexpr is a variable if triton is not installed.
# pyright: reportInvalidTypeForm=false

import torch
from torch import Tensor

from tunesmith.kernels.language import jit, tl

BLOCK = 1024
MOMENTS_BLOCK = 256
"""Moments that share a scale in 8 bits."""
PART = 1 << 16
"""Values per part on a CPU: 256 KiB of each moment in fp32."""


def adamw_(
    parameter_N: Tensor,
    gradient_N: Tensor,
    first_N: Tensor,
    second_N: Tensor,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    """Update parameter [N] and moments [N] in place with one AdamW step (Loshchilov and Hutter 2019, arXiv:1711.05101).

    Parameter and moments: fp32; gradient [N]: any floating dtype, unchanged. step: counted from 1. The reference, in
    plain PyTorch.
    """
    beta1, beta2 = betas
    gradient_N = gradient_N.to(first_N.dtype)
    parameter_N.mul_(1.0 - learning_rate * weight_decay)
    first_N.lerp_(gradient_N, 1.0 - beta1)
    second_N.mul_(beta2).addcmul_(gradient_N, gradient_N, value=1.0 - beta2)
    divisor_N = (second_N / (1.0 - beta2**step)).sqrt_().add_(eps)
    parameter_N.addcdiv_(first_N, divisor_N, value=-learning_rate / (1.0 - beta1**step))


def adamw_triton_(
    parameter_N: Tensor,
    gradient_N: Tensor,
    first_N: Tensor,
    second_N: Tensor,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    """`adamw_` as one Triton kernel. Parameter: fp32, bf16 or fp16, like the gradient; moments: fp32."""
    options = (learning_rate, *betas, eps, weight_decay, 1.0 - betas[0] ** step, 1.0 - betas[1] ** step)
    _adamw_op(parameter_N, gradient_N, first_N, second_N, *options)


def adamw_fused_(
    parameter_N: Tensor,
    gradient_N: Tensor,
    first_N: Tensor,
    second_N: Tensor,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    """`adamw_` through torch's fused kernel: on a CPU every value is read and written once. All tensors fp32 [N]."""
    torch._fused_adamw_(  # pyright: ignore[reportPrivateImportUsage]
        [parameter_N],
        [gradient_N],
        [first_N],
        [second_N],
        [],
        [torch.tensor(float(step))],
        lr=learning_rate,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=False,
        maximize=False,
    )


def adamw_8bit_cpu_(
    parameter_N: Tensor,
    gradient_N: Tensor,
    codes_2N: Tensor,
    scales_2B: Tensor,
    tables_2x256: Tensor,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    """`adamw_8bit_` in parts of PART values, so that the fp32 moments of a part fit the cache. Same arguments."""
    for start in range(0, len(parameter_N), PART):
        part = slice(start, start + PART)
        blocks = slice(start // MOMENTS_BLOCK, (start + PART) // MOMENTS_BLOCK)
        adamw_8bit_(
            parameter_N[part],
            gradient_N[part],
            codes_2N[:, part],
            scales_2B[:, blocks],
            tables_2x256,
            learning_rate=learning_rate,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            step=step,
        )


def adamw_8bit_(
    parameter_N: Tensor,
    gradient_N: Tensor,
    codes_2N: Tensor,
    scales_2B: Tensor,
    tables_2x256: Tensor,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    """Update parameter [N] and 8-bit moments in place with one AdamW step (Dettmers et al. 2021, arXiv:2110.02861).

    parameter: fp32 [N]; gradient: [N], unchanged. codes: uint8 [2, N], of first and second moments; scales: fp32 [2,
    B]; tables: fp32 [2, 256], ascending, of first (signed) and second moments. step: counted from 1. The reference:
    dequantizes the moments, applies `adamw_` and quantizes them again.
    """
    moments = [unpacked(codes_2N[i], scales_2B[i], tables_2x256[i]) for i in range(2)]
    adamw_(
        parameter_N,
        gradient_N,
        *moments,
        learning_rate=learning_rate,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        step=step,
    )
    for i in range(2):
        codes, scales = packed(moments[i], tables_2x256[i])
        codes_2N[i].copy_(codes)
        scales_2B[i].copy_(scales)


def adamw_8bit_triton_(
    parameter_N: Tensor,
    gradient_N: Tensor,
    codes_2N: Tensor,
    scales_2B: Tensor,
    tables_2x256: Tensor,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    """`adamw_8bit_` as one Triton kernel: fp32 moments never exist in memory. Same arguments."""
    options = (learning_rate, *betas, eps, weight_decay, 1.0 - betas[0] ** step, 1.0 - betas[1] ** step)
    middles = (tables_2x256[:, 1:] + tables_2x256[:, :-1]) / 2
    _adamw_8bit_op(parameter_N, gradient_N, codes_2N, scales_2B, tables_2x256, middles.contiguous(), *options)


def unpacked(codes_N: Tensor, scales_B: Tensor, table_256: Tensor) -> Tensor:
    """Dequantize moments: fp32 [N] from codes uint8 [N], scales fp32 [B] and a code table fp32 [256]."""
    return table_256[codes_N.int()] * scales_B.repeat_interleave(MOMENTS_BLOCK)[: len(codes_N)]


def packed(moments_N: Tensor, table_256: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize fp32 moments [N]: codes uint8 [N] of the nearest table entries, and scales fp32 [B], the largest
    magnitude of each block."""
    blocks_BK = moment_blocks(moments_N)
    scales_B = blocks_BK.abs().amax(1)
    return nearest_codes(blocks_BK, scales_B, table_256).to(torch.uint8).reshape(-1)[: len(moments_N)], scales_B


def moment_blocks(moments_N: Tensor) -> Tensor:
    """Reshape moments [N] to the blocks [B, MOMENTS_BLOCK] that share a scale; the last one is padded with zeros."""
    return torch.nn.functional.pad(moments_N, (0, -len(moments_N) % MOMENTS_BLOCK)).view(-1, MOMENTS_BLOCK)


def nearest_codes(blocks_BK: Tensor, scales_B: Tensor, table_256: Tensor) -> Tensor:
    """Return the codes, int64 [B, K], of the table entries nearest to blocks [B, K] divided by their scales [B]."""
    divisor_B = torch.where(scales_B > 0, scales_B, 1.0)
    return torch.bucketize(blocks_BK / divisor_B[:, None], (table_256[1:] + table_256[:-1]) / 2)


@jit
def _update(p, g, m, v, rate, beta1, beta2, eps, decay, correction1, correction2):
    """Return (parameter, first moment, second moment) after the update; all fp32."""
    m = beta1 * m + (1.0 - beta1) * g
    v = beta2 * v + (1.0 - beta2) * g * g
    p = p * (1.0 - rate * decay) - rate * (m / correction1) / (tl.sqrt(v / correction2) + eps)
    return p, m, v


@jit
def _adamw_kernel(
    parameter,
    gradient,
    first,
    second,
    num_values,
    rate,
    beta1,
    beta2,
    eps,
    decay,
    correction1,
    correction2,
    BLOCK: tl.constexpr,
):
    """Each program updates BLOCK values."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < num_values
    p = tl.load(parameter + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
    m = tl.load(first + at, mask=inside, other=0.0)
    v = tl.load(second + at, mask=inside, other=0.0)
    p, m, v = _update(p, g, m, v, rate, beta1, beta2, eps, decay, correction1, correction2)
    tl.store(parameter + at, p.to(parameter.dtype.element_ty), mask=inside)
    tl.store(first + at, m, mask=inside)
    tl.store(second + at, v, mask=inside)


@jit
def _pack(values, middles, codes, scales, block, at, inside):
    """Store a block's moments as codes and scale. The code is the number of midpoints below the value: a binary search
    over 255 midpoints."""
    scale = tl.max(tl.abs(values), 0)
    share = values / tl.where(scale > 0.0, scale, 1.0)
    code = tl.zeros_like(share).to(tl.int32)
    for step in tl.static_range(8):
        further = code + (128 >> step)
        code = tl.where(tl.load(middles + further - 1) < share, further, code)
    tl.store(codes + at, code.to(tl.uint8), mask=inside)
    tl.store(scales + block, scale)


@jit
def _adamw_8bit_kernel(
    parameter,
    gradient,
    first,
    second,
    first_scales,
    second_scales,
    first_table,
    second_table,
    first_middles,
    second_middles,
    num_values,
    rate,
    beta1,
    beta2,
    eps,
    decay,
    correction1,
    correction2,
    BLOCK: tl.constexpr,
):
    """Each program updates one block of moments."""
    block = tl.program_id(0).to(tl.int64)
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < num_values
    p = tl.load(parameter + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
    m = tl.load(first_table + tl.load(first + at, mask=inside, other=0).to(tl.int32)) * tl.load(first_scales + block)
    v = tl.load(second_table + tl.load(second + at, mask=inside, other=0).to(tl.int32)) * tl.load(second_scales + block)
    m = tl.where(inside, m, 0.0)
    v = tl.where(inside, v, 0.0)
    p, m, v = _update(p, g, m, v, rate, beta1, beta2, eps, decay, correction1, correction2)
    tl.store(parameter + at, p.to(parameter.dtype.element_ty), mask=inside)
    _pack(m, first_middles, first, first_scales, block, at, inside)
    _pack(v, second_middles, second, second_scales, block, at, inside)


@torch.library.custom_op("tunesmith::adamw", mutates_args=("parameter_N", "first_N", "second_N"))
def _adamw_op(
    parameter_N: Tensor,
    gradient_N: Tensor,
    first_N: Tensor,
    second_N: Tensor,
    rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    correction1: float,
    correction2: float,
) -> None:
    num_values = parameter_N.numel()
    if num_values:
        options = (num_values, rate, beta1, beta2, eps, decay, correction1, correction2)
        _adamw_kernel[(-(-num_values // BLOCK),)](parameter_N, gradient_N, first_N, second_N, *options, BLOCK=BLOCK)


@_adamw_op.register_fake
def _fake_adamw(parameter_N, gradient_N, first_N, second_N, *options):
    return None


@torch.library.custom_op("tunesmith::adamw_8bit", mutates_args=("parameter_N", "codes_2N", "scales_2B"))
def _adamw_8bit_op(
    parameter_N: Tensor,
    gradient_N: Tensor,
    codes_2N: Tensor,
    scales_2B: Tensor,
    tables_2x256: Tensor,
    middles_2x255: Tensor,
    rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    correction1: float,
    correction2: float,
) -> None:
    num_values = parameter_N.numel()
    if num_values:
        by_moment = [t[i] for t in (codes_2N, scales_2B, tables_2x256, middles_2x255) for i in range(2)]
        options = (num_values, rate, beta1, beta2, eps, decay, correction1, correction2)
        grid = (-(-num_values // MOMENTS_BLOCK),)
        _adamw_8bit_kernel[grid](parameter_N, gradient_N, *by_moment, *options, BLOCK=MOMENTS_BLOCK, num_warps=2)


@_adamw_8bit_op.register_fake
def _fake_adamw_8bit(parameter_N, gradient_N, codes_2N, scales_2B, tables_2x256, middles_2x255, *options):
    return None
