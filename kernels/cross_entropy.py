"""Cross-entropy of materialized logits, for heads that are more than one matrix, e.g. with an adapter on the head.

T tokens, V vocabulary. For a row of logits x with label y:  z = x, or cap * tanh(x / cap) with a soft cap,
L = logsumexp(z), e label smoothing, k the weight of the z-loss (Chowdhery et al. 2022, arXiv:2204.02311, section 5):
    loss = L - (1 - e) z_y - (e / V) sum_v z_v + k L^2
    dz_v = (1 + 2 k L) softmax(z)_v - (1 - e) [v = y] - e / V,   times 1 - (z_v / cap)^2 with a cap
"""

# tl.constexpr is a variable if triton is not installed.
# pyright: reportInvalidTypeForm=false

from typing import Any

import torch
from torch import Tensor

from tunesmith.kernels import exhausted
from tunesmith.kernels.language import jit, next_power_of_2, rows_of, tl

IGNORED = -100
"""Label of a token that is not supervised."""

MAX_BLOCK = 2048
"""Logits that a program reads at a time, over 8 warps: 8 per thread, one load of 16 bytes in bf16. Four programs fit
a multiprocessor with the registers that this takes; with 4,096 logits only two would."""


def cross_entropy(
    logits_TV: Tensor,
    labels_T: Tensor,
    *,
    label_smoothing: float = 0.0,
    soft_cap: float | None = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Sum the cross-entropy, in nats, over the tokens whose label is not -100.

    logits: [T, V] of any floating dtype; labels: int64 [T]. soft_cap: z = soft_cap * tanh(logits / soft_cap), as in
    Gemma 2. z_loss: weight of the z-loss (Chowdhery et al. 2022, arXiv:2204.02311).
    Returns (loss_sum: scalar, fp32 or fp64 for fp64 logits, differentiable; number of rows whose largest logit is the
    label's: int64 scalar). Pass only supervised rows to save memory. The reference, in plain PyTorch.
    """
    logits_TV = logits_TV if logits_TV.dtype == torch.float64 else logits_TV.float()
    if soft_cap is not None:
        logits_TV = soft_cap * torch.tanh(logits_TV / soft_cap)
    loss_sum = torch.nn.functional.cross_entropy(
        logits_TV, labels_T, ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="sum"
    )
    if z_loss:
        loss_sum = loss_sum + z_loss * logits_TV.logsumexp(-1)[labels_T != IGNORED].square().sum()
    return loss_sum, (logits_TV.detach().argmax(-1) == labels_T).sum()


def cross_entropy_triton(
    logits_TV: Tensor,
    labels_T: Tensor,
    *,
    label_smoothing: float = 0.0,
    soft_cap: float | None = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """`cross_entropy` in Triton: reads the logits once in the forward pass (online softmax, arXiv:1805.02867), and once
    more in the backward pass.

    logits: [T, V] of fp32, bf16 or fp16; computed in fp32, the gradient has their dtype.
    """
    loss_T, correct_T, _ = _forward_op(rows_of(logits_TV), labels_T, label_smoothing, soft_cap or 0.0, z_loss)
    return loss_T.sum(dtype=torch.float64).float(), correct_T.sum()


def losses_and_gradient_(
    logits_nV: Tensor, labels_n: Tensor, label_smoothing: float, soft_cap: float | None, z_loss: float, gradient: bool
) -> tuple[Tensor, Tensor]:
    """Return (loss fp32 [n], correct bool [n]) of a chunk of logits [n, V] with valid labels, int64 [n].

    With `gradient` the logits are overwritten by the gradient of the loss sum. For linear_cross_entropy.py, which owns
    the buffer of the logits.
    """
    loss_n = logits_nV.new_empty(len(labels_n), dtype=torch.float32)
    correct_n = torch.empty_like(labels_n, dtype=torch.bool)
    _in_place_op(logits_nV, labels_n, loss_n, correct_n, label_smoothing, soft_cap or 0.0, z_loss, gradient)
    return loss_n, correct_n


@jit
def _capped(x, cap, HAS_CAP: tl.constexpr):
    if HAS_CAP:
        # tanh(u) = 2 sigmoid(2u) - 1
        x = cap * (2.0 * tl.sigmoid(2.0 * x / cap) - 1.0)
    return x


@jit
def _row_sums(logits, label, num_logits, cap, HAS_CAP: tl.constexpr, HAS_SMOOTHING: tl.constexpr, BLOCK: tl.constexpr):
    """Return (logsumexp, sum of z (0 without smoothing), z of the label, whether no other column precedes the label in
    the order of argmax) of one row, reading it once.

    Each lane keeps a softmax of its own columns (online softmax, arXiv:1805.02867): the loop has no reduction and
    therefore no barrier. The label's logit is read first: the caller may overwrite the row after the last reduction.
    """
    z_label = _capped(tl.load(logits + label).to(tl.float32), cap, HAS_CAP)
    largest = tl.full((BLOCK,), -1e30, tl.float32)  # finite: the difference of two infinities is not a number
    total = tl.zeros((BLOCK,), tl.float32)
    z_sum = tl.zeros((BLOCK,), tl.float32)
    beaten = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, num_logits, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < num_logits
        z = _capped(tl.load(logits + column, mask=inside, other=0.0).to(tl.float32), cap, HAS_CAP)
        if HAS_SMOOTHING:
            z_sum += tl.where(inside, z, 0.0)
        z = tl.where(inside, z, float("-inf"))
        beaten |= ((z > z_label) | ((z == z_label) & (column < label))).to(tl.int32)
        above = z - largest
        ratio = tl.exp(-tl.abs(above))
        total = tl.where(above > 0, total * ratio + 1.0, total + ratio)
        largest = tl.maximum(largest, z)
    row_largest = tl.max(largest, 0)
    log_total = row_largest + tl.log(tl.sum(total * tl.exp(largest - row_largest), 0))
    return log_total, tl.sum(z_sum, 0), z_label, tl.max(beaten, 0) == 0


@jit
def _write_gradient(
    logits,
    dlogits,
    label,
    num_logits,
    log_total,
    factor,
    smoothing,
    cap,
    z_loss,
    HAS_CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write factor * d loss / d logits of one row. dlogits may alias logits: each block is read before it is
    written."""
    for start in range(0, num_logits, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < num_logits
        z = _capped(tl.load(logits + column, mask=inside, other=0.0).to(tl.float32), cap, HAS_CAP)
        dz = tl.exp(z - log_total) * (1.0 + 2.0 * z_loss * log_total) - smoothing / num_logits
        dz -= tl.where(column == label, 1.0 - smoothing, 0.0)
        if HAS_CAP:
            dz *= 1.0 - (z / cap) * (z / cap)
        tl.store(dlogits + column, (factor * dz).to(dlogits.dtype.element_ty), mask=inside)


@jit
def _forward_kernel(
    logits,
    labels,
    losses,
    correct,
    log_totals,
    stride,
    num_logits,
    smoothing,
    cap,
    z_loss,
    HAS_CAP: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    IN_PLACE_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per row. losses, log_totals: fp32 [T]; correct: bool [T]. Labels below 0 are not supervised."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    known = tl.maximum(label, 0)
    row_logits = logits + row * stride
    log_total, z_sum, z_label, is_first = _row_sums(row_logits, known, num_logits, cap, HAS_CAP, HAS_SMOOTHING, BLOCK)
    loss = log_total - (1.0 - smoothing) * z_label - smoothing / num_logits * z_sum + z_loss * log_total * log_total
    tl.store(losses + row, tl.where(label >= 0, loss, 0.0))
    tl.store(correct + row, is_first & (label >= 0))
    if IN_PLACE_GRADIENT:
        _write_gradient(
            row_logits, row_logits, known, num_logits, log_total, 1.0, smoothing, cap, z_loss, HAS_CAP, BLOCK
        )
    else:
        tl.store(log_totals + row, log_total)


@jit
def _backward_kernel(
    dlosses,
    logits,
    labels,
    log_totals,
    dlogits,
    stride_dlosses,
    stride,
    num_logits,
    smoothing,
    cap,
    z_loss,
    HAS_CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per row. dlogits: contiguous; 0 in rows that are not supervised."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    factor = tl.where(label >= 0, tl.load(dlosses + row * stride_dlosses), 0.0)
    _write_gradient(
        logits + row * stride,
        dlogits + row * num_logits,
        tl.maximum(label, 0),
        num_logits,
        tl.load(log_totals + row),
        factor,
        smoothing,
        cap,
        z_loss,
        HAS_CAP,
        BLOCK,
    )


def _launch(num_logits: int) -> dict[str, int]:
    block = min(MAX_BLOCK, next_power_of_2(num_logits))
    return {"BLOCK": block, "num_warps": 8 if block == MAX_BLOCK else 4}


@torch.library.custom_op("tunesmith::cross_entropy", mutates_args=())
def _forward_op(
    logits_TV: Tensor, labels_T: Tensor, smoothing: float, cap: float, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss fp32 [T], correct bool [T], logsumexp fp32 [T]); cap 0: none."""
    loss_T, correct_T, log_total_T = _fake_forward(logits_TV, labels_T, smoothing, cap, z_loss)
    if len(labels_T):
        _forward_kernel[(len(labels_T),)](
            logits_TV,
            labels_T.contiguous(),
            loss_T,
            correct_T,
            log_total_T,
            logits_TV.stride(0),
            logits_TV.shape[1],
            smoothing,
            cap,
            z_loss,
            HAS_CAP=cap > 0,
            HAS_SMOOTHING=smoothing > 0,
            IN_PLACE_GRADIENT=False,
            **_launch(logits_TV.shape[1]),
        )
    return loss_T, correct_T, log_total_T


@_forward_op.register_fake
def _fake_forward(logits_TV, labels_T, smoothing, cap, z_loss):
    by_token = [logits_TV.new_empty(len(labels_T), dtype=dtype) for dtype in (torch.float32, torch.bool, torch.float32)]
    return by_token[0], by_token[1], by_token[2]


@torch.library.custom_op("tunesmith::cross_entropy_backward", mutates_args=())
def _backward_op(
    dloss_T: Tensor,
    logits_TV: Tensor,
    labels_T: Tensor,
    log_total_T: Tensor,
    smoothing: float,
    cap: float,
    z_loss: float,
) -> Tensor:
    dlogits_TV = logits_TV.new_empty(logits_TV.shape)
    if len(labels_T):
        _backward_kernel[(len(labels_T),)](
            dloss_T,
            logits_TV,
            labels_T.contiguous(),
            log_total_T,
            dlogits_TV,
            dloss_T.stride(0),
            logits_TV.stride(0),
            logits_TV.shape[1],
            smoothing,
            cap,
            z_loss,
            HAS_CAP=cap > 0,
            **_launch(logits_TV.shape[1]),
        )
    return dlogits_TV


@_backward_op.register_fake
def _fake_backward(dloss_T, logits_TV, labels_T, log_total_T, smoothing, cap, z_loss):
    return logits_TV.new_empty(logits_TV.shape)


@torch.library.custom_op("tunesmith::cross_entropy_in_place", mutates_args=("logits_nV", "loss_n", "correct_n"))
def _in_place_op(
    logits_nV: Tensor,
    labels_n: Tensor,
    loss_n: Tensor,
    correct_n: Tensor,
    smoothing: float,
    cap: float,
    z_loss: float,
    gradient: bool,
) -> None:
    log_total_n = loss_n if gradient else torch.empty_like(loss_n)  # written only without the gradient
    if len(labels_n):
        _forward_kernel[(len(labels_n),)](
            logits_nV,
            labels_n.contiguous(),
            loss_n,
            correct_n,
            log_total_n,
            logits_nV.stride(0),
            logits_nV.shape[1],
            smoothing,
            cap,
            z_loss,
            HAS_CAP=cap > 0,
            HAS_SMOOTHING=smoothing > 0,
            IN_PLACE_GRADIENT=gradient,
            **_launch(logits_nV.shape[1]),
        )


@_in_place_op.register_fake
def _fake_in_place(logits_nV, labels_n, loss_n, correct_n, smoothing, cap, z_loss, gradient):
    return None


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    logits_TV, labels_T, *ctx.options = inputs
    ctx.save_for_backward(logits_TV, labels_T, output[2])


def _backward(ctx: Any, dloss_T: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
    logits_TV, labels_T, _ = ctx.saved_tensors
    smoothing, cap, z_loss = ctx.options
    dlogits_TV = exhausted.attempt(
        ("cross_entropy",),
        lambda: _backward_op(dloss_T, *ctx.saved_tensors, *ctx.options),
        lambda: exhausted.gradients(  # the losses are summed: all have the same gradient
            lambda logits: cross_entropy(
                logits, labels_T, label_smoothing=smoothing, soft_cap=cap or None, z_loss=z_loss
            )[0],
            (logits_TV,),
            (True,),
            (dloss_T[:1].sum(),),
        )[0],
    )
    return dlogits_TV, None, None, None, None


_forward_op.register_autograd(_backward, setup_context=_keep)
