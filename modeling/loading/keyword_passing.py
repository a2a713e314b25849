"""Models whose layers do not pass keyword arguments on to their attention (StableLM, Nemotron).

The attention functions of this package get the documents, or the step of batched generation, as keyword arguments of
the model's forward. Where a layer drops them, they are stored in its attention module before each of its forward passes
(also in those that recompute activations), and read there.
"""

import dis
import inspect
from types import CodeType
from typing import Any

from torch import nn

PASSED = ("documents", "kernels", "step", "sequence_lengths")
"""Keyword arguments of the attention functions of this package."""
_STORED = "tunesmith_keywords"


def pass_keywords(model: nn.Module) -> None:
    """Pass keyword arguments on in the layers of a model that drop them; otherwise change nothing."""
    for layer in model.modules():
        attention = getattr(layer, "self_attn", None)
        if isinstance(attention, nn.Module) and not hasattr(attention, _STORED) and _drops_keywords(layer):
            setattr(attention, _STORED, {})
            layer.register_forward_pre_hook(_store, with_kwargs=True)


def stored_keywords(attention: nn.Module) -> dict[str, Any]:
    """Return the keyword arguments that the layer of this attention got; empty if the layer passes them on."""
    return getattr(attention, _STORED, {})


def passes_keywords(model: nn.Module) -> bool:
    """Whether the attention of this model gets the keyword arguments of its forward: transformers declares it, or
    `pass_keywords` changed its layers."""
    declared = getattr(model, "_supports_attention_backend", False)
    return bool(declared) or any(hasattr(module, _STORED) for module in model.modules())


def _drops_keywords(layer: nn.Module) -> bool:
    """Whether the forward of a layer takes any keyword arguments and calls nothing with them."""
    code = inspect.unwrap(type(layer).forward).__code__
    return bool(code.co_flags & inspect.CO_VARKEYWORDS) and not _unpacks(code)


def _unpacks(code: CodeType) -> bool:
    return any(instruction.opname == "CALL_FUNCTION_EX" for instruction in dis.get_instructions(code))


def _store(layer: nn.Module, _arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    setattr(layer.self_attn, _STORED, {name: keywords[name] for name in PASSED if name in keywords})
