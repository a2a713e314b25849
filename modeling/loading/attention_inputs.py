"""What a model of transformers requires of an attention function: the rule of its mask, and its other arguments.

transformers describes a mask by a function of positions, composed of known parts, before it is built. The attention
functions for packed documents and for batched generation compute the rule themselves: no mask is created, which would
be quadratic in the tokens of the stream. A part that is not known here is named, and refused when a layer uses it.

T tokens of the stream, H heads, D head size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

HARMLESS = frozenset({
    "cache_position", "labels", "layer_idx", "logits_to_keep", "num_items_in_batch", "output_hidden_states",
    "output_router_logits", "position_embeddings", "position_ids", "return_dict", "sequence_lengths", "token_type_ids",
    "use_cache",
})  # fmt: skip
"""Keyword arguments that models pass on to their attention, and that do not change its result."""


@dataclass(frozen=True)
class MaskRule:
    """Which earlier tokens of its sequence a token attends to, where it is not all of them.

    window: itself and at most window - 1 earlier tokens; None: all. chunk: tokens of its chunk only, where chunks of
    that many tokens begin at the first token of the sequence; None: all. unknown: parts of the mask that are not known.
    """

    window: int | None = None
    chunk: int | None = None
    unknown: str = ""

    def __getitem__(self, index: Any) -> "MaskRule":
        """Whole slices of the mask are the mask: Gemma 4 slices the masks of its layers with shared keys."""
        if all(part in (slice(None), slice(0, None)) for part in index):
            return self
        return replace(self, unknown=f"the slice {index} of the mask")


@dataclass(frozen=True)
class Demands:
    """What a layer requires of its attention. reason: why it cannot be computed; empty if it can."""

    window: int | None
    chunk: int | None
    causal: bool
    reason: str = ""


def mask_rule(
    *_arguments: Any,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    **_more: Any,
) -> MaskRule | None:
    """Mask function registered with transformers. Returns None if a token attends to all earlier tokens of its sequence
    (or to all tokens, in models that are not causal)."""
    rule = MaskRule() if mask_function is None else _rule_of(mask_function)
    if attention_mask is not None and not bool((attention_mask != 0).all()):
        rule = replace(rule, unknown="a mask of padding")
    return None if rule == MaskRule() else rule


def demands_of(module: Any, mask: object, sliding_window: int | None, others: Mapping[str, Any]) -> Demands:
    """Return what this call of the attention function requires.

    mask: `attention_mask` of the call; sliding_window, others: its other keyword arguments, without those that the
    caller computes itself. Where the mask has a rule, that decides: `sliding_window` is for implementations
    that do not read masks.
    """
    rule = mask if isinstance(mask, MaskRule) else MaskRule(window=sliding_window)
    given = others.get("is_causal")
    causal = bool(getattr(module, "is_causal", True) if given is None else given)
    reason, known = "", HARMLESS | {"is_causal"}
    unknown = [name for name, value in others.items() if not (name in known or value is None or value is False)]
    if unknown:
        reason = f"the argument {unknown[0]} of its attention is not supported"
    elif rule.unknown:
        reason = f"its attention mask is not supported: {rule.unknown}"
    elif mask is not None and not isinstance(mask, MaskRule):
        reason = "it builds an attention mask of its own"
    return Demands(rule.window, rule.chunk, causal, reason)


def tempered(module: Any, query_BHTD: Tensor, positions: Callable[[torch.device], Tensor]) -> Tensor:
    """Return the query, rescaled if the model scales it by the position (Llama 4, layers without rotary embedding).

    transformers counts those positions from the start of the stream. positions: returns those in each sequence, int64
    [T].
    """
    if not getattr(module, "attn_temperature_tuning", False) or getattr(module, "use_rope", True):
        return query_BHTD
    actual_T = positions(query_BHTD.device)
    in_stream_T = torch.arange(len(actual_T), device=query_BHTD.device)
    actual, applied = (_temperature(module, position_T) for position_T in (actual_T, in_stream_T))
    return (query_BHTD * (actual / applied)[:, None]).to(query_BHTD.dtype)


def _temperature(module: Any, position_T: Tensor) -> Tensor:
    """Factors of the queries, fp32 [T] (Nakanishi 2025, arXiv:2501.19399)."""
    return torch.log1p(torch.floor((position_T.float() + 1.0) / module.floor_scale)) * module.attn_scale + 1.0


def _rule_of(function: Callable[..., Any]) -> MaskRule:
    """The rule of a mask function, from the functions that it is composed of (transformers.masking_utils)."""
    inner = dict(
        zip(function.__code__.co_freevars, (cell.cell_contents for cell in function.__closure__ or ()), strict=True)
    )
    match function.__qualname__.split(".")[0]:
        case "causal_mask_function" | "bidirectional_mask_function" | "packed_sequence_mask_function":
            return MaskRule()  # the packed sequences are the documents
        case "remap_positions_for_packed_sequence":
            return _rule_of(inner["mask_function"])
        case "sliding_window_overlay":
            return MaskRule(window=int(inner["sliding_window"]))
        case "chunked_overlay" | "_legacy_chunked_overlay":
            return MaskRule(chunk=int(inner["chunk_size"]))
        case "and_masks":
            return _both([_rule_of(part) for part in inner["mask_functions"]])
        case name:
            return MaskRule(unknown=name)


def _both(rules: list[MaskRule]) -> MaskRule:
    """The rule of an intersection of masks."""
    windows = [rule.window for rule in rules if rule.window is not None]
    chunks = {rule.chunk for rule in rules if rule.chunk is not None}
    unknown = [rule.unknown for rule in rules if rule.unknown]
    if len(chunks) > 1:
        unknown.append("chunks of several sizes")
    return MaskRule(min(windows, default=None), min(chunks, default=None), unknown[0] if unknown else "")
