"""Lets a transformers model attend within documents that lie end to end in one stream.

The model's forward gets `document_lengths` as a keyword and passes it down to every attention layer (transformers does
so for models written for its attention interface). No mask is made: a dense one would need the square of the stream's
tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from tunesmith.errors import RunFault
from tunesmith.kernels.dispatch import choose

PACKED = "tunesmith_packed"
"""Name under which transformers knows this attention."""


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
    document_lengths: list[int] | None = None,
    **_unused: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in place of its own attention. query: [1, H, T, D]; key, value: [1, K, T, D]; returns
    [1, T, H, D].

    RunFault where the lengths are missing (attention would silently cross documents) or the model asks for what is not
    computed here.
    """
    if document_lengths is None or attention_mask is not None:
        raise RunFault(
            "the packed attention was called without document lengths, or with a mask of its own",
            where=type(module).__name__,
            remedy="call the model through tunesmith's CausalLoss, or switch it to another attention first",
        )
    if softcap is not None:
        raise RunFault(
            "this model caps its attention scores, which the packed attention does not", where=type(module).__name__
        )
    output_BHTD = choose("packed_attention", query)(
        query,
        key,
        value,
        document_lengths,
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
    """Runs the block with another attention ("sdpa" to generate with a cache, PACKED to score), then sets the former
    one again."""
    former = model.config._attn_implementation
    model.set_attn_implementation(name)
    assert isinstance(former, str)
    try:
        yield
    finally:
        model.set_attn_implementation(former)
