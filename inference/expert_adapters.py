"""Adapters on stacked experts (peft's `target_parameters`): a row of a batch uses those of its adapter.

T rows of a step, K experts per token, E experts, H hidden, I inputs and O outputs of a projection, R adapter rank.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tunesmith.modeling.adapters.experts import by_expert
from tunesmith.modeling.expert_forward import Factors, declares_layout, experts_forward

_NESTED = ".base_layer"
"""peft wraps a module once per adapted parameter: the wrapper of an earlier parameter is inside that of a later one."""


class Ranges(Protocol):
    """Rows of each adapter in the layers of a forward pass, as (start, stop, name), ascending."""

    body: Sequence[tuple[int, int, str]]


class AdaptedExperts(nn.Module):
    """A frozen experts module plus the updates of adapters on their rows."""

    def __init__(self, inner: nn.Module, rows: Ranges):
        super().__init__()
        self.inner, self.rows = inner, rows
        self.factors: dict[str, Mapping[str, Factors]] = {}
        """By adapter, then by the name of the projection's parameter."""

    def __getattr__(self, name: str) -> Any:
        """What a model reads of its experts, such as their number."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, hidden_TH: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
        """Arguments as of transformers' experts."""
        parts, done, arguments = [], 0, (hidden_TH, expert_TK, weight_TK)
        for start, stop, name in self.rows.body:
            if name not in self.factors:
                continue
            if start > done:
                parts.append(self.inner(*(argument[done:start] for argument in arguments)))
            own = (argument[start:stop] for argument in arguments)
            parts.append(experts_forward(self.inner, *own, adapters=self.factors[name]))
            done = stop
        if done < len(hidden_TH):
            parts.append(self.inner(*(argument[done:] for argument in arguments)))
        return torch.cat(parts)


def experts_at(model: nn.Module, path: str) -> tuple[str, nn.Module] | None:
    """Return the path and the module of the experts that the wrapper at this path of peft's adapts; None if it is
    none."""
    while path.endswith(_NESTED):
        path = path.removesuffix(_NESTED)
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return None
    module = module.inner if isinstance(module, AdaptedExperts) else module
    return (path, module) if declares_layout(module) else None


def read_factors(
    path: str, wrapper: str, experts: Any, config: Mapping[str, Any], pair: Sequence[Tensor], scale_of: Callable
) -> tuple[str, Factors]:
    """Return the name of the parameter that a wrapper adapts, and its factors by expert.

    path: of the experts. wrapper: path of the wrapper. pair: A [E R, I] and B [O, R E]. scale_of: returns the adapter's
    scale for the path of the parameter and a rank. ValueError if they do not fit the experts.
    """
    targets = tuple(f".{target}" for target in config.get("target_parameters") or ())
    names = [name for name, _ in experts.named_parameters(recurse=False)]
    targeted = [name for name in names if f".{path}.{name}".endswith(targets)]
    depth = wrapper.removeprefix(path).count(_NESTED)
    if depth >= len(targeted):
        raise ValueError(f"{wrapper} is for none of its target_parameters")
    name, count = targeted[-1 - depth], experts.num_experts
    first, second = getattr(experts, name).shape[1:]
    expected = (second, first) if experts.is_transposed else (first, second)
    a, b = pair
    if (b.shape[0], a.shape[1]) != expected or a.shape[0] != b.shape[1] or a.shape[0] % count:
        stored = [count, b.shape[0], a.shape[1]]
        raise ValueError(f"{path}.{name} is {[count, *expected]} in the base model, {stored} in the adapter")
    return name, Factors(*by_expert(a, b, count), scale_of(f"{path}.{name}", a.shape[0] // count))


def num_bytes(factors: Mapping[str, Factors]) -> int:
    """Return the size of an experts module's factors."""
    return sum(t.numel() * t.element_size() for own in factors.values() for t in (*own.a, *own.b))
