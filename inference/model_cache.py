"""The cache of transformers that a model generates with: keys and values, and the states of state-space layers."""

import inspect
from typing import Any
from weakref import WeakSet

import torch
from transformers import DynamicCache

from tunesmith.configs.plan import ModelProof
from tunesmith.modeling.parts import causal_lm

_NAMES = ("past_key_values", "cache_params")
"""Names of the argument in the forward of a model; the second in pure state-space models."""
_WITHOUT: WeakSet[Any] = WeakSet()


def generate_without_cache(model: Any) -> None:
    """Compute every step of generation with this model from all tokens."""
    _WITHOUT.add(model)


def generate_as_proved(model: Any, proof: ModelProof | None) -> None:
    """Generate without the cache if the proof of the model found that it changes the results."""
    if proof is not None and not proof.cached_generation:
        generate_without_cache(causal_lm(model))


def new_cache(model: Any) -> dict[str, DynamicCache]:
    """Return an empty cache as an argument of the model's forward; {} if the class has no cache of this kind."""
    known = inspect.signature(model.forward).parameters
    name = next((name for name in _NAMES if name in known), None)
    if name is None or model in _WITHOUT or not model._supports_default_dynamic_cache():
        return {}
    try:
        return {name: DynamicCache(config=model.config)}
    except (AttributeError, ValueError, KeyError):  # a configuration without layers of its own (several parts)
        return {}


def accepted(model: Any, **inputs: Any) -> dict[str, Any]:
    """Return those of the inputs that the model's forward takes by name."""
    known = inspect.signature(model.forward).parameters
    return {name: value for name, value in inputs.items() if name in known}


def positions(first: int, count: int, device: torch.device) -> torch.Tensor:
    """Positions of the next tokens of one sequence, int64 [1, count]. Always passed: hybrid models whose first layer
    has no keys count from 0 otherwise."""
    return torch.arange(first, first + count, device=device)[None]
