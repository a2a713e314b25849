"""Attention over concatenated documents: each token attends only to earlier tokens of its own document.

B is 1, H query heads, K key and value heads (H a multiple of K), T tokens of all documents, t tokens of one, D head
size.
"""

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tunesmith.kernels.capped_attention import capped_attention
from tunesmith.kernels.language import product_type
from tunesmith.kernels.varlen_attention import AttentionOptions, Documents, varlen_attention


def packed_attention(
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
    """Compute softmax(scale q k^T) v for each document separately, with torch's scaled_dot_product_attention; with a
    soft cap or sinks, see `capped_attention`.

    query: [1, H, T, D]; key, value: [1, K, T, D]; all of one floating dtype. documents: of T tokens. scale: None:
    1 / sqrt(D). dropout: probability for attention weights, applied whenever positive. window: a token attends to
    itself and at most window - 1 earlier tokens (sliding window). softcap: scores are softcap tanh(scores / softcap).
    sinks: [H], a logit of each head in the denominator of the softmax. Returns [1, H, T, D] in the dtype of the query,
    with memory layout [1, T, H, D]. Raises ValueError if the documents do not have T tokens, the batch size is not 1,
    or a window is not causal.

    Separate documents instead of a dense block-diagonal mask: on AVX2 cores (9 query and 3 key heads of 64, fp32, 512
    tokens, forward and backward) this takes 0.4 of the time with a mask for 4 documents and 1.0 for one; of a whole
    LoRA step of SmolLM2-135M (CPU seconds, one thread, 5 alternating pairs) 0.87 and 1.0. The inputs are split, not
    sliced: the backward pass of n slices would add n tensors of the full size.
    """
    check_documents(query_BHTD, documents, causal, window)
    if softcap is not None or sinks is not None:
        return capped_attention(
            query_BHTD,
            key_BKTD,
            value_BKTD,
            documents,
            scale=scale,
            dropout=dropout,
            causal=causal,
            window=window,
            softcap=softcap,
            sinks=sinks,
        )
    lengths = documents.lengths
    parts_BtHD = []
    for query, key, value in zip(
        query_BHTD.split(lengths, 2), key_BKTD.split(lengths, 2), value_BKTD.split(lengths, 2), strict=True
    ):
        mask = _window_mask(query, window) if window is not None and query.shape[2] > window else None
        output_BHtD = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=causal and mask is None,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        parts_BtHD.append(output_BHtD.transpose(1, 2))
    # Concatenated in [B, T, H, D], the layout that the output projection reads without a copy.
    return torch.cat(parts_BtHD, dim=1).transpose(1, 2) if len(parts_BtHD) > 1 else parts_BtHD[0].transpose(1, 2)


def packed_attention_varlen(
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    documents: Documents,
    **options: Unpack[AttentionOptions],
) -> Tensor:
    """Same as `packed_attention`, with one variable-length flash attention for all documents, which has neither soft
    caps nor sinks: with them `capped_attention`. Same arguments and results; computes in autocast's dtype if
    enabled."""
    check_documents(query_BHTD, documents, options.get("causal", True), options.get("window"))
    if is_capped(options):
        return capped_attention(query_BHTD, key_BKTD, value_BKTD, documents, **options)
    dtype = product_type(query_BHTD)
    query_THD, key_TKD, value_TKD = (t[0].transpose(0, 1).to(dtype) for t in (query_BHTD, key_BKTD, value_BKTD))
    plain: Any = {name: value for name, value in options.items() if name not in ("softcap", "sinks")}
    return varlen_attention(query_THD, key_TKD, value_TKD, documents, documents, **plain).transpose(0, 1)[None]


def packed_attention_reference(
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    documents: Documents,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Reference of `packed_attention` with one dense mask and without dropout; tests compare against it. Same arguments
    and results."""
    lengths, group = documents.lengths, query_BHTD.shape[1] // key_BKTD.shape[1]
    key_BHTD, value_BHTD = (t.repeat_interleave(group, dim=1) for t in (key_BKTD, value_BKTD))
    document_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(query_BHTD.device)
    position_T = torch.arange(len(document_T), device=query_BHTD.device)
    distance_TT = position_T[:, None] - position_T[None, :]
    visible_TT = document_T[:, None] == document_T[None, :]
    if causal:
        visible_TT &= distance_TT >= 0
    if window is not None:
        visible_TT &= distance_TT < window
    scores_BHTT = query_BHTD @ key_BHTD.transpose(2, 3) * (scale if scale is not None else query_BHTD.shape[-1] ** -0.5)
    if softcap is not None:
        scores_BHTT = softcap * torch.tanh(scores_BHTT / softcap)
    scores_BHTT = scores_BHTT.masked_fill(~visible_TT, float("-inf"))
    if sinks is None:
        return scores_BHTT.softmax(-1) @ value_BHTD
    sinks_BHT1 = sinks.view(1, -1, 1, 1).expand(*scores_BHTT.shape[:3], 1)
    return torch.cat([scores_BHTT, sinks_BHT1], dim=-1).softmax(-1)[..., :-1] @ value_BHTD


def is_capped(options: AttentionOptions) -> bool:
    """Whether the attention has a soft cap or sinks."""
    return options.get("softcap") is not None or options.get("sinks") is not None


def check_documents(query_BHTD: Tensor, documents: Documents, causal: bool, window: int | None) -> None:
    """Raise ValueError if the documents do not have as many tokens as the queries, or a window is not causal."""
    batch, _, num_tokens, _ = query_BHTD.shape
    if batch != 1 or documents.num_tokens != num_tokens:
        raise ValueError(
            f"{batch} x {num_tokens} tokens do not match one stream of documents of {documents.num_tokens} tokens"
        )
    if window is not None and not causal:
        raise ValueError("a window is causal")


def _window_mask(query_BHtD: Tensor, window: int) -> Tensor:
    """bool [t, t], true if the query (row) attends to the key (column): causal, and less than `window` back."""
    position_t = torch.arange(query_BHtD.shape[2], device=query_BHtD.device)
    distance_tt = position_t[:, None] - position_t[None, :]
    return (distance_tt >= 0) & (distance_tt < window)
