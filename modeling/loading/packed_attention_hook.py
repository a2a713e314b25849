"""Registers packed attention with transformers: attention within documents that are concatenated in one stream.

The model's forward gets `documents`, and optionally the run's `kernels`, as keyword arguments and passes them to every
attention layer (as transformers does for models that use its attention interface). No mask is created: a dense one
would be quadratic in the tokens of the stream.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from tunesmith.errors import RunFault
from tunesmith.kernels.dispatch import Kernels, choose
from tunesmith.kernels.varlen_attention import Documents

PACKED = "tunesmith_packed"
"""Name of this attention implementation in transformers."""


def packed_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    documents: Documents | None = None,
    kernels: Kernels | None = None,
    **_unused: Any,
) -> tuple[Tensor, None]:
    """Attention function called by transformers. query: [1, H, T, D]; key, value: [1, K, T, D]; returns [1, T, H, D] in
    the query's dtype.

    RunFault if the documents are missing (attention would silently cross documents) or the model uses an unsupported
    option.
    """
    if documents is None or attention_mask is not None:
        raise RunFault(
            "packed attention was called without documents, or with an attention mask",
            where=type(module).__name__,
            remedy="call the model through tunesmith's CausalLoss, or set another attention implementation first",
        )
    if softcap is not None:
        raise RunFault(
            "this model caps its attention scores, which packed attention does not support",
            where=type(module).__name__,
        )
    output_BHTD = (kernels.choose if kernels is not None else choose)("packed_attention", query)(
        query,
        key,
        value,
        documents,
        scale=scaling,
        dropout=dropout,
        window=sliding_window,
        causal=bool(getattr(module, "is_causal", True)),
    )
    return output_BHTD.transpose(1, 2), None


def _no_mask(*_arguments: Any, **_keywords: Any) -> None:
    return None


AttentionInterface.register(PACKED, packed_attention_forward)
AttentionMaskInterface.register(PACKED, _no_mask)


@contextmanager
def attention_of(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Context with another attention implementation ("sdpa" to generate with a cache, PACKED to score); restores the
    former one on exit."""
    former = model.config._attn_implementation
    model.set_attn_implementation(name)
    assert isinstance(former, str)
    try:
        yield
    finally:
        model.set_attn_implementation(former)
