"""LoRA on stacked experts, applied to the tokens of each expert: peft's own forward adds the weight update of all
experts to a copy of their weights, in every pass, and keeps that copy for the backward pass.

Works on experts modules that declare their layout (modeling/expert_forward.py), in 16 or 4 bits; other modules keep
peft's forward. Parameters, names and merging stay peft's.

T tokens, K experts per token, E experts, H hidden, I inputs and O outputs of a projection, R rank.
"""

from collections.abc import Sequence
from typing import Any, cast

import tunesmith.modeling.quantization.bitsandbytes_light  # noqa: F401  # isort: skip  # before peft imports it
import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn

from tunesmith.modeling.expert_forward import Factors, declares_layout, experts_forward, update
from tunesmith.modeling.quantization.nf4_stack import stacks_of


def use_token_wise_adapters(model: nn.Module) -> list[str]:
    """Replace the forward of every adapted experts module and linear layer that peft adapts as a parameter. Returns the
    paths of experts that keep peft's forward, because their module does not declare its layout."""
    kept = []
    inner = {id(module.base_layer) for module in model.modules() if isinstance(module, ParamWrapper)}
    for path, module in model.named_modules():
        if not isinstance(module, ParamWrapper) or id(module) in inner:
            continue
        base, adapted = module.get_base_layer(), cast(Any, module)
        if isinstance(base, nn.Linear):
            adapted.forward = _LinearForward(module)
        elif declares_layout(base):
            adapted.forward = _ExpertsForward(module)
        elif module.num_experts > 1:
            kept.append(path)
    return kept


class _LinearForward:
    """Forward of a linear layer whose weight is adapted as a parameter, as of a layer that is adapted itself."""

    def __init__(self, wrapper: ParamWrapper):
        self._wrapper = wrapper

    def __call__(self, x: Tensor, *args: Any, **keywords: Any) -> Tensor:
        wrapper = self._wrapper
        if (factors := _factors(wrapper)) is None:
            return ParamWrapper.forward(wrapper, x, *args, **keywords)
        return wrapper.get_base_layer()(x) + update(x, factors.a[0], factors.b[0], factors.scaling)


class _ExpertsForward:
    """Forward of an experts module with adapters on any of its projections. outermost: of peft's nested wrappers."""

    def __init__(self, outermost: ParamWrapper):
        self._outermost = outermost

    def __call__(self, hidden_TH: Tensor, *args: Any, **keywords: Any) -> Tensor:
        """Arguments as of transformers' experts: hidden states, then expert numbers and their weights, [T, K] each."""
        wrappers = _nested(self._outermost)
        adapters = {wrapper.parameter_name: _factors(wrapper) for wrapper in wrappers}
        if len(args) != 2 or keywords or None in adapters.values():
            return ParamWrapper.forward(self._outermost, hidden_TH, *args, **keywords)
        return experts_forward(wrappers[-1].get_base_layer(), hidden_TH, *args, adapters=adapters)  # type: ignore[arg-type]


def merged_parameter(outermost: ParamWrapper, name: str) -> Tensor:
    """Return a parameter of a module that peft adapts by parameter, in fp32, with its adapter merged. The module is not
    changed. name: of the module's parameter, with or without adapter."""
    merged = _frozen_parameter(outermost.get_base_layer(), name)
    for wrapper in _nested(outermost):
        if wrapper.parameter_name == name and (factors := _factors(wrapper)) is not None:
            updates = [b.detach().float() @ a.detach().float() for a, b in zip(factors.a, factors.b, strict=True)]
            updates = [update.t() if is_transposed(wrapper) else update for update in updates]
            merged = merged + factors.scaling * (torch.stack(updates) if merged.dim() == 3 else updates[0])
    return merged


def _frozen_parameter(module: nn.Module, name: str) -> Tensor:
    """fp32; dequantized if it is in 4 bits."""
    stack = stacks_of(module).get(name)
    return module.get_parameter(name).detach().float() if stack is None else stack.whole(torch.float32)


def is_transposed(wrapper: ParamWrapper) -> bool:
    """Whether the wrapper's parameter is [E, I, O]: peft then takes its dimensions as they are."""
    return wrapper.num_experts > 1 and not wrapper._did_swap_in_out_features


def _nested(outermost: ParamWrapper) -> list[ParamWrapper]:
    """peft's wrappers around one module, one per adapted parameter."""
    wrappers: list[ParamWrapper] = []
    module: Any = outermost
    while isinstance(module, ParamWrapper):
        wrappers.append(module)
        module = module.base_layer
    return wrappers


def _factors(wrapper: ParamWrapper) -> Factors | None:
    """The wrapper's active adapter by expert; None if there is not exactly one, or it is disabled or merged.

    peft stores the matrices of all experts as one: A [E R, I], expert after expert, and B [O, R E], rank after rank.
    """
    names = [name for name in wrapper.active_adapters if name in wrapper.lora_A]
    if wrapper.disable_adapters or wrapper.merged or len(names) != 1:
        return None
    a, b = wrapper.lora_A[names[0]].weight, wrapper.lora_B[names[0]].weight
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    return Factors(*by_expert(a, b, wrapper.num_experts), float(wrapper.scaling[names[0]]))


def by_expert(a: Tensor, b: Tensor, count: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Return the matrices [R, I] and [O, R] of each expert from those that peft stores, A [E R, I] and B [O, R E]."""
    # unbind: the gradient of all experts is collected once, where indexing would add a full-size one per expert.
    return a.view(count, -1, a.shape[1]).unbind(0), b.view(b.shape[0], -1, count).permute(2, 0, 1).unbind(0)
