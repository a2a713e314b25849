"""Attention of a step: the tokens of many sequences are concatenated, and each attends to its sequence's KV cache.

Models of transformers pass the step to every attention layer as a keyword argument (as `documents` in
modeling/loading/packed_attention_hook.py) and keep no cache. Sequences that add one token are processed in one call per
bucket; those that add more (a prompt, or a chunk of one) one by one.

T tokens of the step, B slots of a bucket, H query heads, K key-value heads, G = H / K, D head size, L cached tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from tunesmith.inference.kv_cache import Bucket, Slot, mask_of
from tunesmith.inference.types import RequestRejected

BATCHED = "tunesmith_batched"
"""Name of this attention implementation in transformers."""


@dataclass(frozen=True)
class Span:
    """Rows start to stop of the step: the next tokens of the sequence in this slot."""

    start: int
    stop: int
    slot: Slot


class _Group:
    """The sequences of one bucket that add one token each."""

    def __init__(self, bucket: Bucket, spans: list[Span], device: torch.device):
        self.bucket, self.num_slots = bucket, len(bucket.slots)
        self.rows_N = torch.tensor([span.start for span in spans], device=device)
        self.index_N = torch.tensor([span.slot.index for span in spans], device=device)
        self.before_N = torch.tensor([span.slot.length for span in spans], device=device)
        self.longest = max(span.slot.length for span in spans) + 1
        # An idle slot attends to one token: softmax over an empty set would be NaN.
        self.lengths_B = torch.ones(self.num_slots, dtype=torch.int64, device=device)
        self.lengths_B[self.index_N] = self.before_N + 1
        self._masks: dict[int | None, Tensor] = {}

    def mask(self, window: int | None) -> Tensor:
        if window not in self._masks:
            self._masks[window] = mask_of(self.lengths_B, self.longest, window)
        return self._masks[window]


@dataclass
class Step:
    """Tokens that a forward pass adds to each sequence. on_layer: called by each layer. layers: indices of the layers
    that ran this attention."""

    spans: list[Span]
    device: torch.device
    on_layer: Callable[[], None] = lambda: None
    layers: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.long = [span for span in self.spans if span.stop - span.start > 1]
        by_bucket: dict[int, list[Span]] = {}
        for span in self.spans:
            if span.stop - span.start == 1:
                by_bucket.setdefault(id(span.slot.bucket), []).append(span)
        self.groups = [_Group(spans[0].slot.bucket, spans, self.device) for spans in by_bucket.values()]


def batched_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    step: Step | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_unused: Any,
) -> tuple[Tensor, None]:
    """Attention function registered with transformers. query: [1, H, T, D]; key, value: [1, K, T, D] of the new tokens
    only; returns [1, T, H, D]. Raises RequestRejected if the model uses an unsupported feature."""
    number = getattr(module, "layer_idx", None)
    if step is None or attention_mask is not None or softcap is not None or s_aux is not None or number is None:
        name = type(module).__name__
        raise RequestRejected("unsupported_attention", f"{name} uses an unsupported form of attention", module=name)
    step.layers.add(number)
    step.on_layer()
    query_HTD, key_KTD, value_KTD = query[0], key[0], value[0]
    output_THD = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
    for span in step.long:
        output_THD[span.start : span.stop] = _attend_long(
            span, number, query_HTD, key_KTD, value_KTD, scaling, sliding_window
        )
    for group in step.groups:
        output_THD[group.rows_N] = _attend_group(group, number, query_HTD, key_KTD, value_KTD, scaling, sliding_window)
    return output_THD[None], None


def _attend_long(
    span: Span,
    number: int,
    query_HTD: Tensor,
    key_KTD: Tensor,
    value_KTD: Tensor,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Output [t, H, D] for the t rows of the span; writes their keys and values to its slot."""
    slot, before, rows = span.slot, span.slot.length, slice(span.start, span.stop)
    keys_SKCD, values_SKCD = slot.bucket.layer(number, key_KTD, value_KTD)
    after = before + span.stop - span.start
    keys_SKCD[slot.index, :, before:after] = key_KTD[:, rows]
    values_SKCD[slot.index, :, before:after] = value_KTD[:, rows]
    mask = None
    if before or (window is not None and after > window):
        position_t = torch.arange(before, after, device=query_HTD.device)[:, None]
        position_L = torch.arange(after, device=query_HTD.device)
        mask = position_L <= position_t
        if window is not None:
            mask = mask & (position_L > position_t - window)
    output_1HtD = scaled_dot_product_attention(
        query_HTD[None, :, rows],
        keys_SKCD[slot.index, :, :after][None],
        values_SKCD[slot.index, :, :after][None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query_HTD.shape[0] != key_KTD.shape[0],
    )
    return output_1HtD[0].transpose(0, 1)


def _attend_group(
    group: _Group,
    number: int,
    query_HTD: Tensor,
    key_KTD: Tensor,
    value_KTD: Tensor,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Output [N, H, D] for the rows of the group. The G query heads of a key-value head take the place of query tokens,
    so that keys and values are not repeated."""
    keys_SKCD, values_SKCD = group.bucket.layer(number, key_KTD, value_KTD)
    keys_SKCD[group.index_N, :, group.before_N] = key_KTD[:, group.rows_N].transpose(0, 1)
    values_SKCD[group.index_N, :, group.before_N] = value_KTD[:, group.rows_N].transpose(0, 1)
    num_heads, _, size = query_HTD.shape
    num_kv_heads = key_KTD.shape[0]
    query_BKGD = query_HTD.new_zeros(group.num_slots, num_kv_heads, num_heads // num_kv_heads, size)
    query_BKGD[group.index_N] = query_HTD[:, group.rows_N].transpose(0, 1).unflatten(1, (num_kv_heads, -1))
    output_BKGD = scaled_dot_product_attention(
        query_BKGD,
        keys_SKCD[: group.num_slots, :, : group.longest],
        values_SKCD[: group.num_slots, :, : group.longest],
        attn_mask=group.mask(window),
        scale=scaling,
    )
    return output_BKGD[group.index_N].flatten(1, 2)


def _no_mask(*_arguments: Any, **_keywords: Any) -> None:
    return None


AttentionInterface.register(BATCHED, batched_attention_forward)
AttentionMaskInterface.register(BATCHED, _no_mask)
