"""The attention implementation of a model: as requested, where its class lets one be chosen."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel


def set_attention(model: PreTrainedModel, name: str | None) -> None:
    """Set the attention implementation; None: the one that transformers chooses (sdpa, or eager without it). Classes
    that do not use transformers' attention interface keep theirs."""
    inner: Any = model
    if not inner._can_set_attn_implementation():
        return
    implementation = name or inner.get_correct_attn_implementation(None)
    if inner.config._attn_implementation != implementation:
        inner.set_attn_implementation(implementation)


@contextmanager
def attention_of(model: PreTrainedModel, name: str | None) -> Iterator[None]:
    """Context with another attention implementation (None: the model's own, to generate with a cache); restores the
    former one on exit."""
    former = model.config._attn_implementation
    set_attention(model, name)
    assert isinstance(former, str)
    try:
        yield
    finally:
        set_attention(model, former)
