"""Attention of a step: the tokens of many sequences are concatenated, and each attends to its sequence's KV cache.

Models of transformers pass the step to every attention layer as a keyword argument (as `documents` in
modeling/loading/packed_attention_hook.py) and keep no cache. Sequences that add one token are processed in one call per
bucket; those that add more (a prompt, or a chunk of one) one by one.

T tokens of the step, B slots of a bucket, H query heads, K key-value heads, G = H / K, D head size, E that of the
values, L cached tokens.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from tunesmith.inference.kv_cache import Bucket, Slot, mask_of
from tunesmith.inference.types import RequestRejected
from tunesmith.kernels.capped_attention import SCORES, capped_weights, wide_product
from tunesmith.kernels.language import equal_parts
from tunesmith.modeling.loading.attention_inputs import demands_of, mask_rule, tempered
from tunesmith.modeling.loading.keyword_passing import stored_keywords

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
        self._masks: dict[tuple[int | None, int | None], Tensor] = {}

    def mask(self, window: int | None, chunk: int | None) -> Tensor:
        if (window, chunk) not in self._masks:
            self._masks[window, chunk] = mask_of(self.lengths_B, self.longest, window, chunk)
        return self._masks[window, chunk]


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
        self._keys: list[tuple[weakref.ref[Tensor], int]] = []

    def positions(self, device: torch.device) -> Tensor:
        """Position of each token in its sequence, int64 [T]."""
        before = [(span.slot.length, span.slot.length + span.stop - span.start) for span in self.spans]
        return torch.cat([torch.arange(*ends) for ends in before]).to(device)

    def cache_layer(self, number: int, key: Tensor) -> int:
        """Index of the layer whose cache holds these keys: an earlier one if the layers share them (Gemma 3n, 4)."""
        for keys, other in self._keys:
            if keys() is key:
                return other
        self._keys.append((weakref.ref(key), number))
        return number


class _Form(NamedTuple):
    """Form of a layer's attention. number: index of the layer with its keys and values. writes: whether they are this
    layer's own."""

    number: int
    writes: bool
    scale: float | None
    window: int | None
    chunk: int | None
    softcap: float | None
    sinks_H: Tensor | None

    @property
    def capped(self) -> bool:
        return self.softcap is not None or self.sinks_H is not None

    @property
    def reach(self) -> int | None:
        """Tokens of the shortest sequence in which a token does not attend to all earlier ones, less 1."""
        return min((size for size in (self.window, self.chunk) if size is not None), default=None)


def batched_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    step: Step | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention function registered with transformers. query: [1, H, T, D]; key: [1, K, T, D], value: [1, K, T, E] of
    the new tokens only; s_aux: [H], attention sinks; returns [1, T, H, E]. Raises RequestRejected if the model uses an
    unsupported feature."""
    step = stored_keywords(module).get("step") if step is None else step
    number = getattr(module, "layer_idx", None)
    demands = demands_of(module, attention_mask, sliding_window, others)
    if step is None or number is None or demands.reason or not demands.causal:
        name = type(module).__name__
        reason = demands.reason or "it is not causal attention with a cache"
        message = f"{name} uses an unsupported form of attention: {reason}"
        raise RequestRejected("unsupported_attention", message, module=name, reason=reason)
    step.layers.add(number)
    step.on_layer()
    owner = step.cache_layer(number, key)
    form = _Form(owner, owner == number, scaling, demands.window, demands.chunk, softcap, s_aux)
    query_HTD, key_KTD, value_KTE = tempered(module, query, step.positions)[0], key[0], value[0]
    output_THE = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
    for span in step.long:
        output_THE[span.start : span.stop] = _attend_long(span, form, query_HTD, key_KTD, value_KTE)
    for group in step.groups:
        output_THE[group.rows_N] = _attend_group(group, form, query_HTD, key_KTD, value_KTE)
    return output_THE[None], None


def _attend_long(span: Span, form: _Form, query_HTD: Tensor, key_KTD: Tensor, value_KTE: Tensor) -> Tensor:
    """Output [t, H, E] for the t rows of the span; writes their keys and values to its slot."""
    slot, before, rows = span.slot, span.slot.length, slice(span.start, span.stop)
    keys_SKCD, values_SKCE = slot.bucket.layer(form.number, key_KTD, value_KTE)
    after = before + span.stop - span.start
    if form.writes:
        keys_SKCD[slot.index, :, before:after] = key_KTD[:, rows]
        values_SKCE[slot.index, :, before:after] = value_KTE[:, rows]
    query_1HtD = query_HTD[None, :, rows]
    keys_1KLD, values_1KLE = keys_SKCD[slot.index, :, :after][None], values_SKCE[slot.index, :, :after][None]
    if form.capped:
        mask = _mask_of_rows(before, after, form, query_HTD.device)
        return _capped(query_1HtD, keys_1KLD, values_1KLE, mask, form)[0].transpose(0, 1)
    is_whole = not before and (form.reach is None or after <= form.reach)
    mask = None if is_whole else _mask_of_rows(before, after, form, query_HTD.device)
    output_1HtE = scaled_dot_product_attention(
        query_1HtD,
        keys_1KLD,
        values_1KLE,
        attn_mask=mask,
        is_causal=mask is None,
        scale=form.scale,
        enable_gqa=query_HTD.shape[0] != key_KTD.shape[0],
    )
    return output_1HtE[0].transpose(0, 1)


def _mask_of_rows(before: int, after: int, form: _Form, device: torch.device) -> Tensor:
    """bool [t, L], true where the token at position `before` and later (row) attends to a token (column)."""
    position_t1 = torch.arange(before, after, device=device)[:, None]
    position_L = torch.arange(after, device=device)
    mask_tL = position_L <= position_t1
    if form.window is not None:
        mask_tL = mask_tL & (position_L > position_t1 - form.window)
    if form.chunk is not None:
        mask_tL = mask_tL & (position_L // form.chunk == position_t1 // form.chunk)
    return mask_tL


def _attend_group(group: _Group, form: _Form, query_HTD: Tensor, key_KTD: Tensor, value_KTE: Tensor) -> Tensor:
    """Output [N, H, E] for the rows of the group. The G query heads of a key-value head take the place of query tokens,
    so that keys and values are not repeated."""
    keys_SKCD, values_SKCE = group.bucket.layer(form.number, key_KTD, value_KTE)
    if form.writes:
        keys_SKCD[group.index_N, :, group.before_N] = key_KTD[:, group.rows_N].transpose(0, 1)
        values_SKCE[group.index_N, :, group.before_N] = value_KTE[:, group.rows_N].transpose(0, 1)
    num_heads, _, size = query_HTD.shape
    num_kv_heads = key_KTD.shape[0]
    query_BKGD = query_HTD.new_zeros(group.num_slots, num_kv_heads, num_heads // num_kv_heads, size)
    query_BKGD[group.index_N] = query_HTD[:, group.rows_N].transpose(0, 1).unflatten(1, (num_kv_heads, -1))
    keys_BKLD, values_BKLE = (t[: group.num_slots, :, : group.longest] for t in (keys_SKCD, values_SKCE))
    mask = group.mask(form.window, form.chunk)
    if form.capped:
        output_BHE = _capped(query_BKGD.flatten(1, 2)[:, :, None], keys_BKLD, values_BKLE, mask[:, 0], form)[:, :, 0]
        return output_BHE[group.index_N]
    output_BKGE = scaled_dot_product_attention(query_BKGD, keys_BKLD, values_BKLE, attn_mask=mask, scale=form.scale)
    return output_BKGE[group.index_N].flatten(1, 2)


def _capped(query_BHtD: Tensor, keys_BKLD: Tensor, values_BKLE: Tensor, mask: Tensor, form: _Form) -> Tensor:
    """Output [B, H, t, E] of attention with a soft cap or sinks; see kernels/capped_attention.py. mask: bool [t, L] or
    [B, t, L]."""
    batch, num_heads, num_rows, size = query_BHtD.shape
    num_kv_heads, length = keys_BKLD.shape[1:3]
    scale = size**-0.5 if form.scale is None else form.scale
    keys, values = keys_BKLD.flatten(0, 1), values_BKLE.flatten(0, 1)
    mask_BtL = mask.expand(batch, num_rows, length)
    outputs = []
    for rows in equal_parts(num_rows, max(1, SCORES // (batch * num_heads * length))):
        query = query_BHtD[:, :, rows].reshape(batch * num_kv_heads, -1, size)
        scores = wide_product(query, keys.transpose(1, 2)).mul_(scale)
        hidden = ~mask_BtL[:, None, None, rows].expand(-1, num_kv_heads, num_heads // num_kv_heads, -1, -1)
        sinks = None
        if form.sinks_H is not None:
            sinks = form.sinks_H.to(scores.dtype).view(1, -1, 1).expand(batch, -1, rows.stop - rows.start)
            sinks = sinks.reshape(*scores.shape[:2], 1)
        weights, _, _ = capped_weights(scores, form.softcap, sinks, hidden.reshape(scores.shape))
        outputs.append(torch.bmm(weights.to(values.dtype), values).view(batch, num_heads, -1, values.shape[-1]))
    return torch.cat(outputs, dim=2)


AttentionInterface.register(BATCHED, batched_attention_forward)
AttentionMaskInterface.register(BATCHED, mask_rule)
