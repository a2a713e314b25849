"""What a model's forward does around its head: scales of the head's input and output, and the soft cap of the logits.

Families store these under many names, and one name does not mean one operation (Granite divides by `logits_scaling`,
others multiply). They are measured: the class's own forward runs with its backbone and its head replaced by probes.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.errors import RunFault
from tunesmith.modeling.parts import backbone, head_of

SMALL, MIDDLE, LARGE = 1e-3, 8.0, 1e6
"""Probed logits: a soft cap leaves the first unchanged, bends the second and is the value of the third."""
TOLERANCE = 1e-5
"""Relative: probes are fp32, with a handful of operations."""


class LogitTransform(NamedTuple):
    """logits = cap(output_scale * head(input_scale * hidden)), with cap(x) = soft_cap * tanh(x / soft_cap)."""

    input_scale: float = 1.0
    output_scale: float = 1.0
    soft_cap: float | None = None

    def hidden(self, hidden_TH: Tensor) -> Tensor:
        """Scale the head's input by both scales (the head is linear; `bias` scales its bias), [T, H]."""
        scale = self.input_scale * self.output_scale
        return hidden_TH if scale == 1.0 else hidden_TH * scale

    def bias(self, bias_V: Tensor | None) -> Tensor | None:
        """Scale the head's bias, [V]."""
        return bias_V if bias_V is None or self.output_scale == 1.0 else bias_V * self.output_scale

    def logits_of(self, head: nn.Module, hidden_NH: Tensor) -> Tensor:
        """Return the scaled logits of any head, [N, V], without the cap."""
        logits_NV = head(hidden_NH if self.input_scale == 1.0 else hidden_NH * self.input_scale)
        return logits_NV if self.output_scale == 1.0 else logits_NV * self.output_scale


def logit_transform(model: PreTrainedModel) -> LogitTransform:
    """Measure the transform of a causal language model. Runs neither its backbone nor its head, and reads no weight.

    RunFault if the forward does something else between backbone and logits, or has no separate backbone or head.
    """
    small, bent, large = (_probe(model, value) for value in (SMALL, MIDDLE, LARGE))
    input_scale, output_scale = small[0], small[1] / SMALL
    soft_cap = None if math.isclose(large[1], output_scale * LARGE, rel_tol=1e-3) else large[1]
    expected = output_scale * MIDDLE
    if soft_cap is not None:
        expected = soft_cap * math.tanh(expected / soft_cap)
    if not math.isclose(bent[1], expected, rel_tol=10 * TOLERANCE) or bent[0] != input_scale:
        raise RunFault(f"{type(model).__name__} computes something else than scales and a soft cap around its head")
    numbers = list(_numbers(model.config))
    return LogitTransform(_configured(input_scale, numbers), _configured(output_scale, numbers), soft_cap)


def _probe(model: PreTrainedModel, value: float) -> tuple[float, float]:
    """Run the class's forward on a hidden state of ones and raw logits of this value. Returns the head's input and the
    logits."""
    head, body = head_of(model), backbone(model)
    seen: list[Tensor] = []

    def raw_logits(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        seen.append(hidden)
        return torch.full((*hidden.shape[:-1], 4), value, device=hidden.device)

    device = next(model.parameters()).device
    outputs = _Outputs(torch.ones(1, 2, 8, device=device))
    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(_shadowed(model, body, lambda *_, **__: outputs))
        stack.enter_context(_shadowed(model, head, raw_logits))
        own: Any = type(model).forward
        try:
            result = own(model, input_ids=torch.zeros(1, 2, dtype=torch.long, device=device), use_cache=False)
            logits = result.logits if hasattr(result, "logits") else result[0]
        except Exception as error:  # any class may fail in its own way
            raise RunFault(f"the forward of {type(model).__name__} cannot be probed: {error}") from error
    if len(seen) != 1 or seen[0].shape != (1, 2, 8) or logits.shape != (1, 2, 4):
        raise RunFault(f"the forward of {type(model).__name__} is not a backbone followed by a head")
    constant = [t.float().unique() for t in (seen[0], logits)]
    if any(len(values) != 1 for values in constant):
        raise RunFault(f"the forward of {type(model).__name__} treats positions or tokens differently at its head")
    return float(constant[0]), float(constant[1])


class _Probe:
    """Stands for a module: calling it, or a module within it (some classes call the decoder of their backbone), calls
    the function; other attributes are the module's."""

    def __init__(self, module: nn.Module, function: Callable[..., Any]):
        self._module, self._function = module, function

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._function(*arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        return _Probe(value, self._function) if isinstance(value, nn.Module) else value


class _Outputs:
    """Outputs of a backbone: the hidden state, and None for everything else."""

    def __init__(self, hidden: Tensor):
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, key: Any) -> Any:
        return self.last_hidden_state if key in (0, "last_hidden_state") else None

    def get(self, key: str, default: Any = None) -> Any:
        return self.last_hidden_state if key == "last_hidden_state" else default


@contextmanager
def _shadowed(model: nn.Module, module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Context in which the module's owner finds a probe in place of it. The module itself, its hooks and its
    weights are untouched: instance attributes come before registered modules."""
    owners = [(owner, name) for owner in model.modules() for name, child in owner.named_children() if child is module]
    for owner, name in owners:
        owner.__dict__[name] = _Probe(module, function)
    try:
        yield
    finally:
        for owner, name in owners:
            del owner.__dict__[name]


def _numbers(config: Any) -> Iterator[float]:
    """The numbers of a configuration and their inverses."""
    for value in vars(config.get_text_config()).values():
        if isinstance(value, int | float) and not isinstance(value, bool) and value:
            yield from (float(value), 1 / value)


def _configured(scale: float, numbers: list[float]) -> float:
    """The exact value of a measured scale: 1, or that of the configuration."""
    return next((n for n in (1.0, *numbers) if math.isclose(scale, n, rel_tol=TOLERANCE)), scale)
