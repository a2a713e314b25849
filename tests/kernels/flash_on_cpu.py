"""PyTorch's variable-length flash attention on a CPU, for tests: the two operators have CUDA kernels only.

Computes with a dense mask made from the arguments that the operators receive (offsets, causal flag, window, scale), in
their dtype. Everything above the operators is the real code: varlen_attn, autograd, and the product's adapter.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def flash_on_cpu() -> Iterator[Counter]:
    """Context in which CPU tensors may use the operators; yields the number of calls of "forward" and "backward"."""
    calls: Counter = Counter()

    def forward(query, key, value, offsets_q, offsets_k, longest_q, longest_k, dropout, causal, _debug, **options):
        calls["forward"] += 1
        require(query, key, value, offsets_q, offsets_k, longest_q, longest_k)
        output, logsumexp, _ = attention(query, key, value, offsets_q, offsets_k, causal, **options)
        keep = (torch.rand(()) >= dropout) / (1 - dropout) if dropout else 1.0  # of a whole call: enough for a test
        state = torch.zeros(2, dtype=torch.uint64)
        return (output * keep).contiguous(), logsumexp, state, torch.empty(0), torch.empty(0)

    def backward(
        gradient, query, key, value, output, _lse, offsets_q, offsets_k, _lq, _lk, _dropout, causal, _r, _u, **options
    ):
        calls["backward"] += 1
        _, _, weights_HTS = attention(query, key, value, offsets_q, offsets_k, causal, **options)
        group, scale = query.shape[1] // key.shape[1], options.get("scale") or query.shape[-1] ** -0.5
        key_SHD, value_SHD = (t.repeat_interleave(group, dim=1) for t in (key, value))
        dweights_HTS = torch.einsum("thd,shd->hts", gradient, value_SHD)
        delta_HT = (gradient * output).sum(-1).T
        dscores_HTS = weights_HTS * (dweights_HTS - delta_HT[..., None]) * scale
        dquery = torch.einsum("hts,shd->thd", dscores_HTS, key_SHD)
        dkey_SHD = torch.einsum("hts,thd->shd", dscores_HTS, query)
        dvalue_SHD = torch.einsum("hts,thd->shd", weights_HTS, gradient)
        dkey, dvalue = (t.unflatten(1, (key.shape[1], group)).sum(2) for t in (dkey_SHD, dvalue_SHD))
        return dquery, dkey, dvalue

    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", forward, "CPU")
    library.impl("_flash_attention_backward", backward, "CPU")
    try:
        yield calls
    finally:
        library._destroy()


def require(query, key, value, offsets_q, offsets_k, longest_q, longest_k) -> None:
    """What the CUDA kernels require of their arguments."""
    assert query.ndim == key.ndim == value.ndim == 3
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    for offsets, stream, longest in ((offsets_q, query, longest_q), (offsets_k, key, longest_k)):
        assert offsets.dtype == torch.int32
        assert int(offsets[0]) == 0
        assert int(offsets[-1]) == len(stream)
        assert int(offsets.diff().max()) == longest


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets_q: Tensor,
    offsets_k: Tensor,
    causal: bool,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    **_options,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [T, H, D], logsumexp [H, T] and weights [H, T, S], as FlashAttention-2 defines them: a window is relative
    to the diagonal that ends in the lower right corner of each document."""
    left, right = (-1 if side is None else side for side in (window_size_left, window_size_right))
    right = 0 if causal else right
    document_T, document_S = (
        torch.repeat_interleave(torch.arange(len(o) - 1), o.diff()) for o in (offsets_q, offsets_k)
    )
    rest_T = offsets_q[1:][document_T] - torch.arange(len(query))  # tokens to the end of the document
    rest_S = offsets_k[1:][document_S] - torch.arange(len(key))
    distance_TS = rest_S[None, :] - rest_T[:, None]  # how far the key is before the query
    visible_TS = document_T[:, None] == document_S[None, :]
    if left >= 0:
        visible_TS &= distance_TS <= left
    if right >= 0:
        visible_TS &= -distance_TS <= right
    group = query.shape[1] // key.shape[1]
    key_SHD, value_SHD = (t.repeat_interleave(group, dim=1) for t in (key, value))
    scores_HTS = torch.einsum("thd,shd->hts", query, key_SHD) * (scale or query.shape[-1] ** -0.5)
    scores_HTS = scores_HTS.masked_fill(~visible_TS, float("-inf"))
    weights_HTS = scores_HTS.softmax(-1)
    return torch.einsum("hts,shd->thd", weights_HTS, value_SHD), scores_HTS.logsumexp(-1), weights_HTS
