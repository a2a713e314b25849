"""Fused output head and cross-entropy: the logits of all tokens are never materialized at once.

T tokens, N of them supervised, n rows of a chunk, H hidden, V vocabulary.

For every supervised row x with label y:  z = W x + b,  z <- cap * tanh(z / cap) with a soft cap,
loss = logsumexp(z) - (1 - e) z_y - (e / V) sum_v z_v  (e: label smoothing, as in torch.nn.functional.cross_entropy),
plus k logsumexp(z)^2 with a z-loss (Chowdhery et al. 2022, arXiv:2204.02311).
Gradient: dz = (1 + 2 k logsumexp(z)) softmax(z) - (1 - e) onehot(y) - e / V, times 1 - (z / cap)^2 with a cap;
dx = W^T dz, dW = sum dz x^T.

As the loss is a sum, its gradient is known up to one factor once a chunk's logits are: it is computed in the forward
pass and the logits are dropped (Liger Kernel, arXiv:2410.10989). The chunk size follows a memory budget, not the
vocabulary: with few rows per chunk the head would be read too often.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunesmith.kernels.compute_copy import compute_copy
from tunesmith.kernels.cross_entropy import IGNORED, losses_and_gradient_
from tunesmith.kernels.gradient_sums import add_product, scaled
from tunesmith.kernels.language import TYPES, equal_parts
from tunesmith.kernels.trained_rows import TrainedRows, with_rows

CHUNK_BYTES = 64 << 20
"""Size of a chunk's logits. On two AVX2 cores a row takes 1.8 ms in chunks of 8 MiB and 0.8 ms from 64 MiB on (V 49152,
H 576)."""

CUDA_CHUNK_BYTES = 512 << 20
"""Size of a chunk's logits on a GPU: 2,048 rows of 128,256 logits in bf16. The head is read once per chunk; with chunks
of 256 rows that would be most of the memory traffic."""


def linear_cross_entropy(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    labels_T: Tensor,
    *,
    bias_V: Tensor | None = None,
    label_smoothing: float = 0.0,
    soft_cap: float | None = None,
    z_loss: float = 0.0,
    chunk_bytes: int = CHUNK_BYTES,
    trained: TrainedRows | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum the cross-entropy of a linear head over the tokens whose label is not -100 (chunked as in Liger Kernel,
    arXiv:2410.10989).

    hidden: [T, H]; weight: [V, H]; bias: [V]; all floating. Products run in the dtype of the weight (under autocast in
    its dtype) and are summed in fp32 (fp64 if an operand is fp64). labels: int64 [T]. Only supervised rows are
    computed. chunk_bytes: memory for a chunk's logits. trained: rows that replace those of a frozen weight, and alone
    have a gradient. Returns (loss_sum in nats: fp32 scalar, differentiable once with respect to hidden, weight, bias
    and trained rows; number of rows whose largest logit is the label's: int64 scalar). Inputs are not
    modified.
    """
    rows_N = (labels_T != IGNORED).nonzero().squeeze(1)
    labels_N = labels_T.index_select(0, rows_N)
    hidden_NH = hidden_TH.index_select(0, rows_N)
    options = (label_smoothing, soft_cap, z_loss, chunk_bytes)
    kind, weight_VH = _kind(hidden_NH, weight_VH), with_rows(weight_VH, trained)
    return _LinearCrossEntropy.apply(hidden_NH, weight_VH, bias_V, labels_N, kind, *options, *(trained or (None, None)))


def linear_cross_entropy_triton(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    labels_T: Tensor,
    *,
    bias_V: Tensor | None = None,
    label_smoothing: float = 0.0,
    soft_cap: float | None = None,
    z_loss: float = 0.0,
    chunk_bytes: int = CUDA_CHUNK_BYTES,
    trained: TrainedRows | None = None,
) -> tuple[Tensor, Tensor]:
    """`linear_cross_entropy` with one Triton launch per chunk for losses and gradients.

    Logits are rounded to the dtype of the product, e.g. bf16, like those of an unfused head.
    """
    rows_N = (labels_T != IGNORED).nonzero().squeeze(1)
    hidden_NH, labels_N = hidden_TH.index_select(0, rows_N), labels_T.index_select(0, rows_N)
    options = (label_smoothing, soft_cap, z_loss, chunk_bytes)
    weight_VH = with_rows(weight_VH, trained)
    return _LinearCrossEntropy.apply(
        hidden_NH, weight_VH, bias_V, labels_N, TritonChunks, *options, *(trained or (None, None))
    )


def token_losses(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    labels_T: Tensor,
    *,
    bias_V: Tensor | None = None,
    soft_cap: float | None = None,
    fused: bool = False,
    chunk_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (loss, correct) of each token without gradients, for evaluation.

    hidden: [T, H]; weight: [V, H]; bias: [V]; labels: int64 [T]. loss: fp32 [T] (fp64 for fp64 operands) in nats, 0
    where the label is -100; correct: bool [T], whether the largest logit is the label's. fused: in one Triton launch
    per chunk. chunk_bytes: None: as in `linear_cross_entropy` on this device.
    """
    loss_T = hidden_TH.new_zeros(len(labels_T), dtype=_sum_dtype(hidden_TH, weight_VH))
    correct_T = torch.zeros_like(labels_T, dtype=torch.bool)
    rows_N = (labels_T != IGNORED).nonzero().squeeze(1)
    with torch.no_grad():
        num_bytes = chunk_bytes or (CUDA_CHUNK_BYTES if hidden_TH.is_cuda else CHUNK_BYTES)
        kind = TritonChunks if fused else _kind(hidden_TH, weight_VH)
        chunks = kind(hidden_TH, len(rows_N), weight_VH, bias_V, 0.0, soft_cap, 0.0, num_bytes)
        for part in equal_parts(len(rows_N), chunks.num_rows):
            rows_n = rows_N[part]
            loss_T[rows_n], correct_T[rows_n], _ = chunks.evaluate(hidden_TH[rows_n], labels_T[rows_n], gradient=False)
    return loss_T, correct_T


def linear_cross_entropy_reference(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    labels_T: Tensor,
    *,
    bias_V: Tensor | None = None,
    label_smoothing: float = 0.0,
    soft_cap: float | None = None,
    z_loss: float = 0.0,
    trained: TrainedRows | None = None,
) -> tuple[Tensor, Tensor]:
    """Reference of `linear_cross_entropy` in plain PyTorch, with all logits at once; tests and the parity check compare
    against it. Same arguments and results, in the dtype of the operands."""
    if trained is not None:
        weight_VH = weight_VH.detach().index_copy(0, trained.rows_K, trained.values_KH.to(weight_VH.dtype))
    logits_TV = torch.nn.functional.linear(hidden_TH, weight_VH, bias_V)
    if soft_cap is not None:
        logits_TV = soft_cap * torch.tanh(logits_TV / soft_cap)
    loss_sum = torch.nn.functional.cross_entropy(
        logits_TV, labels_T, ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="sum"
    )
    if z_loss:
        loss_sum = loss_sum + z_loss * logits_TV.logsumexp(-1)[labels_T != IGNORED].square().sum()
    return loss_sum, (logits_TV.argmax(-1) == labels_T).sum()


def _sum_dtype(*operands: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in operands) else torch.float32


def _product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(hidden.device.type) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(hidden.device.type)
    return weight.dtype


def _kind(hidden: Tensor, weight: Tensor) -> "type[Chunks]":
    on_cpu = hidden.device.type == "cpu"
    return NarrowChunks if on_cpu and _product_dtype(hidden, weight) == torch.bfloat16 else Chunks


class Chunks:
    """Computes logits chunk by chunk in one reused buffer."""

    def __init__(
        self,
        hidden_TH: Tensor,
        num_supervised: int,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        smoothing: float,
        cap: float | None,
        z_loss: float,
        num_bytes: int,
    ):
        self.product_dtype = _product_dtype(hidden_TH, weight_VH)
        self.sum_dtype = _sum_dtype(hidden_TH, weight_VH)
        self.weight_VH = compute_copy(weight_VH, self.product_dtype)
        self.bias_V = None if bias_V is None else bias_V.detach().to(self.sum_dtype)
        self.smoothing, self.cap, self.z_loss = smoothing, cap, z_loss
        num_logits = weight_VH.shape[0]
        dtype = self.logits_dtype
        self.num_rows = max(1, min(num_supervised, num_bytes // (num_logits * dtype.itemsize)))
        width = -(-num_logits // self.row_multiple) * self.row_multiple
        self.buffer_nV = hidden_TH.new_empty(self.num_rows, width, dtype=dtype)[:, :num_logits]

    row_multiple = 1
    """Rows of the buffer are padded to a multiple of this number of logits."""

    @property
    def logits_dtype(self) -> torch.dtype:
        """Dtype of the logits buffer."""
        return self.sum_dtype

    def product(self, left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
        """Return left @ right, accumulated and returned in `sum_dtype`."""
        left, right = left.to(self.product_dtype), right.to(self.product_dtype)
        with torch.autocast(left.device.type, enabled=False):
            if self.product_dtype == self.sum_dtype:
                return torch.mm(left, right, out=out) if out is not None else torch.mm(left, right)
            wide = left.is_cuda  # a CPU rounds to the dtype of the operands
            result = torch.mm(left, right, out_dtype=self.sum_dtype) if wide else torch.mm(left, right)
        return result.to(self.sum_dtype) if out is None else out.copy_(result)

    def evaluate(self, hidden_nH: Tensor, labels_n: Tensor, gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return (loss [n], correct [n], dlogits [n, V]) for hidden [n, H] and labels [n].

        dlogits is a view of the buffer, overwritten by the next chunk, and only valid with `gradient`.
        """
        z_nV = self.product(hidden_nH, self.weight_VH.T, out=self.buffer_nV[: len(hidden_nH)])
        return *self.losses_and_gradient_(z_nV, labels_n, gradient), z_nV

    def losses_and_gradient_(self, z_nV: Tensor, labels_n: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
        """Return (loss [n], correct [n]) and overwrite the products [n, V] by dlogits."""
        if self.bias_V is not None:
            z_nV += self.bias_V
        slope_nV = None
        if self.cap is not None:
            z_nV.div_(self.cap).tanh_()
            slope_nV = z_nV.square().neg_().add_(1.0) if gradient else None
            z_nV.mul_(self.cap)
        max_n, best_n = z_nV.max(dim=1)
        label_logit_n = z_nV.gather(1, labels_n[:, None]).squeeze(1)
        loss_n = (self.smoothing - 1.0) * label_logit_n
        if self.smoothing:
            loss_n -= self.smoothing * z_nV.mean(dim=1)
        z_nV.sub_(max_n[:, None]).exp_()
        total_n = z_nV.sum(dim=1)
        log_total_n = max_n + total_n.log()
        loss_n += log_total_n
        if self.z_loss:
            loss_n += self.z_loss * log_total_n.square()
            total_n = total_n / (1.0 + 2.0 * self.z_loss * log_total_n)
        if gradient:
            z_nV.div_(total_n[:, None])
            if self.smoothing:
                z_nV.sub_(self.smoothing / z_nV.shape[1])
            z_nV.scatter_add_(1, labels_n[:, None], z_nV.new_full((len(labels_n), 1), self.smoothing - 1.0))
            if slope_nV is not None:
                z_nV.mul_(slope_nV)
        return loss_n, best_n == labels_n


class NarrowChunks(Chunks):
    """Logits in bf16 on a CPU. Everything after the product is computed in fp32, a few rows at a time in the cache."""

    logits_dtype = torch.bfloat16  # type: ignore[assignment]

    def evaluate(self, hidden_nH: Tensor, labels_n: Tensor, gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
        """As `Chunks.evaluate`."""
        z_nV = self.buffer_nV[: len(hidden_nH)]
        torch.mm(hidden_nH.to(self.product_dtype), self.weight_VH.T, out=z_nV)
        num_rows = max(1, (2 << 20) // (z_nV.shape[1] * self.sum_dtype.itemsize))  # 2 MiB in fp32
        results = []
        for rows in equal_parts(len(labels_n), num_rows):
            wide_rV = z_nV[rows].to(self.sum_dtype)
            results.append(self.losses_and_gradient_(wide_rV, labels_n[rows], gradient))
            if gradient:
                z_nV[rows].copy_(wide_rV)
        loss_n, correct_n = (torch.cat(parts) for parts in zip(*results, strict=True))
        return loss_n, correct_n, z_nV


class TritonChunks(Chunks):
    """Logits in the dtype of the product; everything after the product in one launch."""

    row_multiple = 64
    """Every row is aligned, so that loads and stores are vectorized whatever the size of the vocabulary."""

    @property
    def logits_dtype(self) -> torch.dtype:
        """Dtype of the product, if Triton supports it."""
        return self.product_dtype if self.product_dtype in TYPES else torch.float32

    def evaluate(self, hidden_nH: Tensor, labels_n: Tensor, gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
        """As `Chunks.evaluate`, with losses and gradients in one launch."""
        z_nV = self.buffer_nV[: len(hidden_nH)]
        with torch.autocast(hidden_nH.device.type, enabled=False):
            torch.mm(hidden_nH.to(self.product_dtype), self.weight_VH.T, out=z_nV)
        if self.bias_V is not None:
            z_nV += self.bias_V
        options = (self.smoothing, self.cap, self.z_loss)
        return *losses_and_gradient_(z_nV, labels_n, *options, gradient), z_nV


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        kind: type[Chunks],
        smoothing: float,
        cap: float | None,
        z_loss: float,
        num_bytes: int,
        rows_K: Tensor | None,
        trained_KH: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        chunks = kind(hidden_NH, len(hidden_NH), weight_VH, bias_V, smoothing, cap, z_loss, num_bytes)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        dhidden_NH = torch.empty_like(hidden_NH) if wants_hidden else None
        dweight_VH: Tensor | None = None
        dbias_V = torch.zeros_like(bias_V, dtype=chunks.sum_dtype) if bias_V is not None and wants_bias else None
        dtrained_KH = None if trained_KH is None else torch.zeros_like(trained_KH, dtype=chunks.sum_dtype)
        # The sum over chunks is in fp64, so that it does not depend on chunk boundaries.
        loss_sum = hidden_NH.new_zeros((), dtype=torch.float64)
        num_correct = torch.zeros((), dtype=torch.int64, device=hidden_NH.device)
        for rows in equal_parts(len(hidden_NH), chunks.num_rows):
            hidden_nH = hidden_NH[rows]
            loss_n, correct_n, dlogits_nV = chunks.evaluate(
                hidden_nH, labels_N[rows], gradient=any(ctx.needs_input_grad)
            )
            loss_sum += loss_n.sum(dtype=torch.float64)
            num_correct += correct_n.sum()
            narrow_nV = dlogits_nV.to(chunks.product_dtype) if wants_hidden or wants_weight else dlogits_nV
            if dtrained_KH is not None:
                dtrained_KH += chunks.product(dlogits_nV[:, rows_K].T, hidden_nH)
            if dhidden_NH is not None:
                dhidden_NH[rows] = chunks.product(narrow_nV, chunks.weight_VH)
            if dweight_VH is not None:
                add_product(chunks.product_dtype, dweight_VH, narrow_nV.T, hidden_nH)
            elif wants_weight:  # the first part is assigned: adding to zeros would cost another pass over memory
                dweight_VH = chunks.product(narrow_nV.T, hidden_nH)
            if dbias_V is not None:
                dbias_V += dlogits_nV.sum(dim=0, dtype=dbias_V.dtype)
        if wants_weight and dweight_VH is None:  # no row is supervised
            dweight_VH = torch.zeros_like(weight_VH, dtype=chunks.sum_dtype)
        ctx.save_for_backward(dhidden_NH, dweight_VH, dbias_V, dtrained_KH)
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden_NH, weight_VH, bias_V, trained_KH)]
        ctx.mark_non_differentiable(num_correct)
        return loss_sum.to(chunks.sum_dtype), num_correct

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dloss: Tensor, _dcorrect: Tensor
    ) -> tuple[Tensor | None, ...]:
        # In place: a second copy of the head's gradient would be the largest tensor of the step. In a second backward
        # through the same graph autograd raises, since the saved tensors were modified.
        *gradients, dtrained = [
            None if gradient is None else scaled(gradient, dloss, dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *gradients, None, None, None, None, None, None, None, dtrained
