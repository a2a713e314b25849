"""Losses of preference pairs, on log-probabilities of whole sequences that never need all logits at once.

T tokens, N of them supervised, H hidden, V vocabulary, S sequences, P pairs. Chunks are those of
linear_cross_entropy.py. The gradient of a sequence's log-probability is not known up to one factor before the loss of
its pair is. Where the head is frozen the gradient of each row is made in the forward pass and scaled in the backward
pass; otherwise the chunks of logits are made again.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from tunesmith.kernels.cross_entropy import IGNORED
from tunesmith.kernels.language import runs_triton
from tunesmith.kernels.linear_cross_entropy import CHUNK_BYTES, CUDA_CHUNK_BYTES, Chunks, TritonChunks, add_product


def sequence_log_probs(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    labels_T: Tensor,
    lengths: list[int],
    *,
    bias_V: Tensor | None = None,
    soft_cap: float | None = None,
    chunk_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(sum of log p(label) over each sequence's supervised tokens in nats: fp32 [S], differentiable once; supervised
    tokens of each: int64 [S]).

    lengths: tokens of each sequence, summing to T. labels: -100 where not supervised. chunk_bytes: of one chunk's
    logits; None: 64 MiB on a CPU, 512 MiB on a GPU.
    """
    triton = runs_triton(hidden_TH)
    rows_N = (labels_T != IGNORED).nonzero().squeeze(1)
    sequence_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(labels_T.device)
    sequence_N = sequence_T.index_select(0, rows_N)
    loss_N = _TokenLosses.apply(
        hidden_TH.index_select(0, rows_N),
        weight_VH,
        bias_V,
        labels_T.index_select(0, rows_N),
        TritonChunks if triton else Chunks,
        soft_cap,
        chunk_bytes or (CUDA_CHUNK_BYTES if hidden_TH.is_cuda else CHUNK_BYTES),
    )
    log_probs_S = loss_N.new_zeros(len(lengths)).index_add(0, sequence_N, -loss_N)
    return log_probs_S, torch.bincount(sequence_N, minlength=len(lengths))


def sequence_log_probs_reference(
    hidden_TH: Tensor, weight_VH: Tensor, labels_T: Tensor, lengths: list[int], *, bias_V: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The formula with plain torch and all logits at once."""
    log_probs_TV = torch.nn.functional.linear(hidden_TH, weight_VH, bias_V).log_softmax(-1)
    supervised_T = labels_T != IGNORED
    chosen_T = log_probs_TV.gather(1, labels_T.clamp(min=0)[:, None]).squeeze(1) * supervised_T
    sums = [part.sum() for part in chosen_T.split(lengths)]
    return torch.stack(sums), torch.stack([part.sum() for part in supervised_T.split(lengths)])


def dpo(
    chosen_P: Tensor,
    rejected_P: Tensor,
    reference_chosen_P: Tensor,
    reference_rejected_P: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290), a loss for each pair.

    All arguments: summed log-probabilities, of the model in training and of the reference. label_smoothing: the share
    of pairs whose labels are taken to be the wrong way round (conservative DPO).
    """
    margin_P = beta * ((chosen_P - rejected_P) - (reference_chosen_P - reference_rejected_P))
    return -(1.0 - label_smoothing) * logsigmoid(margin_P) - label_smoothing * logsigmoid(-margin_P)


def ipo(
    chosen_P: Tensor, rejected_P: Tensor, reference_chosen_P: Tensor, reference_rejected_P: Tensor, *, beta: float = 0.1
) -> Tensor:
    """Identity preference optimization (Azar et al. 2023, arXiv:2310.12036), a loss for each pair: the squared
    distance of the margin from 1 / (2 beta). Usual arguments are log-probabilities a token."""
    margin_P = (chosen_P - rejected_P) - (reference_chosen_P - reference_rejected_P)
    return (margin_P - 1.0 / (2.0 * beta)).square()


def orpo(chosen_P: Tensor, rejected_P: Tensor, *, beta: float = 0.1) -> Tensor:
    """Odds-ratio preference optimization (Hong et al. 2024, arXiv:2403.07691), a loss for each pair, without a
    reference: the cross-entropy of the chosen answer and beta times the odds term. Arguments: log-probabilities a
    token, below 0."""
    log_odds_P = (chosen_P - rejected_P) - (_log_complement(chosen_P) - _log_complement(rejected_P))
    return -chosen_P - beta * logsigmoid(log_odds_P)


def _log_complement(log_p: Tensor) -> Tensor:
    """log(1 - exp(log_p)), exact also near 0."""
    log_p = log_p.clamp(max=-1e-7)
    near = log_p > -0.6931
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, log_p, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, log_p))),
    )


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        kind: type[Chunks],
        cap: float | None,
        num_bytes: int,
    ) -> Tensor:
        chunks = kind(hidden_NH, len(hidden_NH), weight_VH, bias_V, 0.0, cap, 0.0, num_bytes)
        wants_hidden, *wants_head = ctx.needs_input_grad[:3]
        ctx.again = any(wants_head)
        by_row = wants_hidden and not ctx.again
        dhidden_NH = torch.empty_like(hidden_NH) if by_row else None
        losses = []
        for rows in torch.arange(len(hidden_NH), device=hidden_NH.device).split(chunks.num_rows):
            loss_n, _, dlogits_nV = chunks.evaluate(hidden_NH[rows], labels_N[rows], gradient=by_row)
            losses.append(loss_n)
            if dhidden_NH is not None:
                dhidden_NH[rows] = chunks.product(dlogits_nV, chunks.weight_VH).to(dhidden_NH.dtype)
        ctx.options = (kind, cap, num_bytes)
        ctx.save_for_backward(*([dhidden_NH] if not ctx.again else [hidden_NH, weight_VH, bias_V, labels_N]))
        return torch.cat(losses) if losses else hidden_NH.new_zeros(0, dtype=chunks.sum_dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss_N: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not ctx.again:
            (dhidden_NH,) = ctx.saved_tensors
            scaled = None if dhidden_NH is None else (dhidden_NH * dloss_N[:, None]).to(dhidden_NH.dtype)
            return scaled, *[None] * 6
        hidden_NH, weight_VH, bias_V, labels_N = ctx.saved_tensors
        kind, cap, num_bytes = ctx.options
        chunks = kind(hidden_NH, len(hidden_NH), weight_VH, bias_V, 0.0, cap, 0.0, num_bytes)
        dhidden_NH = torch.empty_like(hidden_NH)
        dweight_VH = torch.zeros_like(weight_VH, dtype=chunks.sum_dtype)
        dbias_V = None if bias_V is None else torch.zeros_like(bias_V, dtype=chunks.sum_dtype)
        for rows in torch.arange(len(hidden_NH), device=hidden_NH.device).split(chunks.num_rows):
            _, _, dlogits_nV = chunks.evaluate(hidden_NH[rows], labels_N[rows], gradient=True)
            dlogits_nV *= dloss_N[rows, None]
            dhidden_NH[rows] = chunks.product(dlogits_nV, chunks.weight_VH).to(dhidden_NH.dtype)
            add_product(chunks, dweight_VH, dlogits_nV.T, hidden_NH[rows])
            if dbias_V is not None:
                dbias_V += dlogits_nV.sum(dim=0)
        wants = ctx.needs_input_grad
        dbias = dbias_V.to(weight_VH.dtype) if dbias_V is not None and wants[2] else None
        dweight = dweight_VH.to(weight_VH.dtype) if wants[1] else None
        return dhidden_NH if wants[0] else None, dweight, dbias, None, None, None, None
