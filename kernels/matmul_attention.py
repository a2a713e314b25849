"""Packed attention on a CPU with bf16 units: every step is a batched matrix product or one pass over the scores.

torch's flash attention for CPUs multiplies small blocks and converts between them: on an EPYC with AVX-512 bf16 it is
hardly faster in bf16 than in fp32. Here documents are multiplied BLOCK queries at a time, all query heads of a key head
in one product. Scores stay in the cache; keys that no query of a block may attend to are not computed.

K key heads, G query heads per key head, t tokens of a document, b queries of a block, n keys of a block, D head size.
With P = softmax(s Q K^T) and O = P V:
    dV = P^T dO        dP = dO V^T        dS = P (dP - rowsum(P dP))        dQ = s dS K        dK = s dS^T Q
Products take bf16 and sum in fp32; the softmax is computed in fp32; scores, P and dS are rounded to bf16, sums over
blocks are in fp32. Saved for the backward pass: query, key and value; P is recomputed.
"""

from functools import lru_cache
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunesmith.kernels.language import product_type
from tunesmith.kernels.packed_attention import check_documents, is_capped, packed_attention
from tunesmith.kernels.query_blocks import Block, blocks_of, put_rows, rows_of_block
from tunesmith.kernels.varlen_attention import AttentionOptions, Documents

BLOCK = 128
"""Queries of a block."""


def packed_attention_matmul(
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    documents: Documents,
    **options: Unpack[AttentionOptions],
) -> Tensor:
    """Same as `packed_attention` on a CPU, in autocast's dtype or that of the query, as large matrix products. Same
    arguments and results; with dropout, a soft cap or sinks, `packed_attention` itself."""
    if options.get("dropout") or is_capped(options):
        return packed_attention(query_BHTD, key_BKTD, value_BKTD, documents, **options)
    causal, window, scale = options.get("causal", True), options.get("window"), options.get("scale")
    check_documents(query_BHTD, documents, causal, window)
    dtype = product_type(query_BHTD)
    operands = (tensor.to(dtype) for tensor in (query_BHTD, key_BKTD, value_BKTD))
    scale = query_BHTD.shape[-1] ** -0.5 if scale is None else scale
    return _Attention.apply(*operands, documents.lengths, scale, causal, window)  # type: ignore[return-value]


class _Attention(torch.autograd.Function):
    """softmax(scale q k^T) v of each document. query: [1, K G, T, D]; key, value: [1, K, T, D]; all bf16."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        lengths: list[int],
        scale: float,
        causal: bool,
        window: int | None,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.options = (lengths, scale, causal, window)
        output = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        parts = [tensor[0].split(lengths, 1) for tensor in (query, key, value, output)]
        for query_HtD, key_KtD, value_KtD, output_HtD in zip(*parts, strict=True):
            key_KtD, value_KtD = key_KtD.contiguous(), value_KtD.contiguous()
            for block in blocks_of(query_HtD.shape[1], BLOCK, causal, window):
                q, k, v = _operands(block, query_HtD, key_KtD, value_KtD)
                weights = _weights(q, k, scale, block, causal, window)
                put_rows(output_HtD, block, torch.bmm(weights, v))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, doutput: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value = ctx.saved_tensors
        lengths, scale, causal, window = ctx.options
        gradients = [torch.empty_like(tensor) for tensor in (query, key, value)]
        parts = [tensor[0].split(lengths, 1) for tensor in (query, key, value, doutput, *gradients)]
        for query_HtD, key_KtD, value_KtD, dout_HtD, dquery_HtD, dkey_KtD, dvalue_KtD in zip(*parts, strict=True):
            key_KtD, value_KtD = key_KtD.contiguous(), value_KtD.contiguous()
            sums = torch.zeros(2, *key_KtD.shape, dtype=torch.float32)
            for block in blocks_of(query_HtD.shape[1], BLOCK, causal, window):
                q, k, v = _operands(block, query_HtD, key_KtD, value_KtD)
                do = rows_of_block(dout_HtD, block, len(k))
                weights = _weights(q, k, scale, block, causal, window)
                dweights = torch.bmm(do, v.transpose(1, 2))
                dscores = torch.ops.aten._softmax_backward_data(dweights, weights, -1, weights.dtype)
                put_rows(dquery_HtD, block, _scaled_product(dscores, k, scale))
                at = slice(block.start, block.end)
                sums[0, :, at] += _scaled_product(dscores.transpose(1, 2), q, scale)
                sums[1, :, at] += torch.bmm(weights.transpose(1, 2), do)
            dkey_KtD.copy_(sums[0])
            dvalue_KtD.copy_(sums[1])
        return *gradients, None, None, None, None


def _operands(block: Block, query_HtD: Tensor, key_KtD: Tensor, value_KtD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The queries of a block, [K, G b, D], its keys and values, [K, n, D]. Contiguous, or each product copies them."""
    at = slice(block.start, block.end)
    return rows_of_block(query_HtD, block, len(key_KtD)), key_KtD[:, at], value_KtD[:, at]


def _scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    return torch.baddbmm(left.new_empty(1, 1, 1), left, right, beta=0, alpha=scale)


def _weights(q: Tensor, k: Tensor, scale: float, block: Block, causal: bool, window: int | None) -> Tensor:
    """softmax(scale q k^T) of a block, [K, G b, n], rounded to bf16."""
    scores = _scaled_product(q, k.transpose(1, 2), scale)
    if causal:
        num_queries, num_keys = block.last - block.first, block.end - block.start
        by_query = scores.view(len(k), -1, num_queries, num_keys)
        if window is not None and num_keys > window:
            by_query += _mask(num_queries, num_keys, window, scores.dtype)
        else:  # keys before the block are visible to all of it
            by_query[..., num_keys - num_queries :] += _mask(num_queries, num_queries, None, scores.dtype)
    return torch.softmax(scores, -1)


@lru_cache(maxsize=256)
def _mask(num_queries: int, num_keys: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """[b, n], 0 where the query (row) attends to the key (column) and -inf elsewhere; the last query is aligned with
    the last key."""
    query_b1 = torch.arange(num_keys - num_queries, num_keys)[:, None]
    distance_bn = query_b1 - torch.arange(num_keys)
    hidden_bn = distance_bn < 0 if window is None else (distance_bn < 0) | (distance_bn >= window)
    return torch.zeros(num_queries, num_keys, dtype=dtype).masked_fill_(hidden_bn, float("-inf"))
