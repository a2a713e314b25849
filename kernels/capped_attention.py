"""Packed attention with soft-capped scores (Gemma 2, arXiv:2408.00118) or attention sinks (gpt-oss, arXiv:2508.10925).

With x = s q k^T, soft cap c and the sink z_h of a head (a logit in the denominator only):
    z = c tanh(x / c)        P = exp(z) / (exp(z_h) + sum exp(z))        P_h = exp(z_h) / (exp(z_h) + sum exp(z))
    dP = dO V^T        D = rowsum(P dP)        dz = P (dP - D)        dz_h = -sum P_h D        dx = dz (1 - (z / c)^2)

No operation of PyTorch computes this with a gradient without compiling (flash attention has neither; flex attention has
no sinks), so each document is computed a block of queries at a time, with batched matrix products. Scores are in memory
for one block only and recomputed in the backward pass. Products take the query's dtype (autocast's if enabled); scores,
softmax and sums are in fp32, or fp64 for fp64 inputs.

K key heads, G query heads per key head, H = K G, T tokens of all documents, t tokens of one, b queries of a block, n
keys of a block, R = G b rows of a block, D head size.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunesmith.kernels.language import product_type
from tunesmith.kernels.query_blocks import Block, blocks_of, put_rows, rows_of_block
from tunesmith.kernels.varlen_attention import Documents

LARGEST_BLOCK = {"cpu": 128, "cuda": 4096}
"""Maximum number of queries of a block: scores of a block stay in a CPU's cache; a GPU takes fewer, larger products."""
SMALLEST_BLOCK = 16
SCORES = 1 << 26
"""Scores of a block (256 MiB in fp32), unless SMALLEST_BLOCK queries have more."""


class _Options(NamedTuple):
    scale: float
    dropout: float
    causal: bool
    window: int | None
    softcap: float | None
    seed: int


def capped_attention(
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    documents: Documents,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Compute the attention of each document with soft-capped scores and attention sinks.

    Arguments as for `packed_attention`; the head size of the values may differ. softcap: c above; None: no cap. sinks:
    [H], z_h above, with gradient; None: none. Returns [1, H, T, D] in the dtype of the products, with memory layout [1,
    T, H, D].
    """
    dtype = product_type(query_BHTD)
    operands = (tensor.to(dtype) for tensor in (query_BHTD, key_BKTD, value_BKTD))
    scale = float(query_BHTD.shape[-1] ** -0.5) if scale is None else scale
    seed = int(torch.randint(1 << 62, ())) if dropout else 0
    options = _Options(scale, dropout, causal, window, softcap, seed)
    return _Attention.apply(*operands, sinks, documents.lengths, options)  # type: ignore[return-value]


def capped_weights(
    scores: Tensor, softcap: float | None, sinks: Tensor | None, hidden: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the softmax over the last dimension of soft-capped scores, the share of the sink (None without) and tanh
    of the scores over the cap (None without).

    scores: fp32 or fp64, overwritten. sinks: broadcast to the scores, with 1 in the last dimension. hidden: bool, true
    for keys that a query does not attend to.
    """
    capped, logits = None, scores
    if softcap is not None:
        capped = scores.div_(softcap).tanh_()
        logits = capped * softcap
    if hidden is not None:
        logits.masked_fill_(hidden, float("-inf"))
    if sinks is None:
        return torch.softmax(logits, -1), None, capped
    largest = torch.maximum(logits.amax(-1, keepdim=True), sinks)
    powers, sink = logits.sub_(largest).exp_(), (sinks - largest).exp_()
    total = powers.sum(-1, keepdim=True).add_(sink)
    return powers.div_(total), sink.div_(total), capped


class _Attention(torch.autograd.Function):
    """query: [1, K G, T, D]; key, value: [1, K, T, D], of one dtype; sinks: [K G] or None."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        lengths: list[int],
        options: _Options,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, sinks)
        ctx.lengths, ctx.options = lengths, options
        batch, num_heads, num_tokens, _ = query.shape
        output = query.new_empty(batch, num_tokens, num_heads, value.shape[-1]).transpose(1, 2)
        parts = [tensor[0].split(lengths, 1) for tensor in (query, key, value, output)]
        generator = _generator(options, query.device)
        for query_HtD, key_KtD, value_KtD, output_HtD in zip(*parts, strict=True):
            for block in _blocks(query_HtD, options):
                q, k, v = _operands(block, query_HtD, key_KtD, value_KtD)
                weights, _, _ = _weights(q, k, sinks, block, options)
                weights = _dropped(weights, options, generator)[0]
                put_rows(output_HtD, block, torch.bmm(weights.to(v.dtype), v))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, doutput: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, sinks = ctx.saved_tensors
        lengths, options = ctx.lengths, ctx.options
        gradients = [torch.empty_like(tensor) for tensor in (query, key, value)]
        wide = _wide(query)
        dsinks = None if sinks is None else torch.zeros_like(sinks, dtype=wide)
        generator = _generator(options, query.device)
        parts = [tensor[0].split(lengths, 1) for tensor in (query, key, value, doutput, *gradients)]
        for query_HtD, key_KtD, value_KtD, dout_HtD, dquery_HtD, dkey_KtD, dvalue_KtD in zip(*parts, strict=True):
            dkey, dvalue = (torch.zeros_like(tensor, dtype=wide) for tensor in (key_KtD, value_KtD))
            for block in _blocks(query_HtD, options):
                q, k, v = _operands(block, query_HtD, key_KtD, value_KtD)
                do, at = rows_of_block(dout_HtD, block, len(k)), slice(block.start, block.end)
                weights, sink_share, capped = _weights(q, k, sinks, block, options)
                dropped, factor = _dropped(weights, options, generator)
                dvalue[:, at] += torch.bmm(dropped.to(v.dtype).transpose(1, 2), do)
                dweights = wide_product(do, v.transpose(1, 2))
                dweights = dweights if factor is None else dweights.mul_(factor)
                mean = (weights * dweights).sum(-1, keepdim=True)
                if dsinks is not None and sink_share is not None:
                    dsinks -= (sink_share * mean).view(len(dsinks), -1).sum(-1)
                dscores = dweights.sub_(mean).mul_(weights).mul_(options.scale)
                if capped is not None:
                    dscores.mul_(capped.square_().neg_().add_(1.0))
                dscores = dscores.to(q.dtype)
                put_rows(dquery_HtD, block, torch.bmm(dscores, k))
                dkey[:, at] += torch.bmm(dscores.transpose(1, 2), q)
            dkey_KtD.copy_(dkey)
            dvalue_KtD.copy_(dvalue)
        return *gradients, None if dsinks is None or sinks is None else dsinks.to(sinks.dtype), None, None


def _blocks(query_HtD: Tensor, options: _Options) -> Iterator[Block]:
    num_heads, length, _ = query_HtD.shape
    largest = LARGEST_BLOCK["cuda" if query_HtD.is_cuda else "cpu"]
    limit = max(SMALLEST_BLOCK, min(largest, SCORES // (num_heads * length)))
    return blocks_of(length, limit, options.causal, options.window)


def _operands(block: Block, query_HtD: Tensor, key_KtD: Tensor, value_KtD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The queries of a block, [K, R, D], its keys and values, [K, n, D]."""
    at = slice(block.start, block.end)
    return rows_of_block(query_HtD, block, len(key_KtD)), key_KtD[:, at], value_KtD[:, at]


def _weights(
    q: Tensor, k: Tensor, sinks: Tensor | None, block: Block, options: _Options
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """P [K, R, n], P_h [K, R, 1] and tanh(x / c) [K, R, n] of a block; see `capped_weights`."""
    scores = wide_product(q, k.transpose(1, 2)).mul_(options.scale)
    sinks_KR1 = None
    if sinks is not None:
        num_queries = block.last - block.first
        sinks_KR1 = sinks.to(scores.dtype).repeat_interleave(num_queries).view(len(k), -1, 1)
    hidden = _hidden(block, options, q.device)
    if hidden is not None:
        hidden = hidden.repeat(q.shape[1] // len(hidden), 1)
    return capped_weights(scores, options.softcap, sinks_KR1, hidden)


def _hidden(block: Block, options: _Options, device: torch.device) -> Tensor | None:
    """bool [b, n], true where the query (row) does not attend to the key (column); None if every query attends to every
    key."""
    if not options.causal:
        return None
    distance_bn = (
        torch.arange(block.first, block.last, device=device)[:, None]
        - torch.arange(block.start, block.end, device=device)[None, :]
    )
    hidden_bn = distance_bn < 0
    return hidden_bn if options.window is None else hidden_bn | (distance_bn >= options.window)


def _generator(options: _Options, device: torch.device) -> torch.Generator | None:
    """Generator of the dropout masks: the same numbers in the forward and in the backward pass."""
    return torch.Generator(device).manual_seed(options.seed) if options.dropout else None


def _dropped(weights: Tensor, options: _Options, generator: torch.Generator | None) -> tuple[Tensor, Tensor | None]:
    """The weights after dropout, and their factors, 0 or 1 / (1 - p); None without dropout."""
    if generator is None:
        return weights, None
    factor = torch.empty_like(weights).bernoulli_(1.0 - options.dropout, generator=generator)
    factor = factor.div_(1.0 - options.dropout) if options.dropout < 1.0 else factor
    return weights * factor, factor


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def wide_product(left: Tensor, right: Tensor) -> Tensor:
    """Batched product in fp32, or fp64 for fp64: not rounded to the dtype of its operands."""
    wide = _wide(left)
    if left.dtype == wide:
        return torch.bmm(left, right)
    if left.is_cuda:
        return torch.ops.aten.bmm.dtype(left, right, wide)
    with torch.autocast(left.device.type, enabled=False):
        return torch.bmm(left.to(wide), right.to(wide))
