"""The forward of stacked experts, expert by expert: frozen in 16 or 4 bits, with or without adapters.

Works on transformers' experts modules (`use_experts_implementation`: they declare gate, bias and orientation of their
parameters).

T tokens, K experts per token, S = T K pairs of token and expert, E experts, H hidden, I inputs and O outputs of a
projection, R rank.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tunesmith.kernels.language import product_type
from tunesmith.modeling.quantization.nf4_stack import Nf4Stack, expert_product

_DECLARED = ("has_gate", "has_bias", "is_transposed", "num_experts")


class Factors(NamedTuple):
    """Of one projection's adapter. a: [R, I] and b: [O, R] of each expert."""

    a: Sequence[Tensor]
    b: Sequence[Tensor]
    scaling: float


def declares_layout(module: nn.Module) -> bool:
    """Whether the module is one of experts that `experts_forward` computes."""
    return all(hasattr(module, name) for name in _DECLARED)


def experts_forward(
    experts: Any, hidden_TH: Tensor, expert_TK: Tensor, weight_TK: Tensor, *, adapters: Mapping[str, Factors]
) -> Tensor:
    """Return the weighted sum of each token's experts, [T, H]. adapters: by the name of the projection's parameter."""
    num_tokens, per_token = expert_TK.shape
    sorted_S, order_S = expert_TK.reshape(-1).sort(stable=True)
    counts = torch.bincount(sorted_S, minlength=experts.num_experts)[: experts.num_experts].tolist()
    first = "gate_up_proj" if experts.has_gate else "up_proj"
    inputs_SH = hidden_TH[order_S // per_token]
    projected = _projected(experts, first, inputs_SH, counts, adapters.get(first))
    inner = experts._apply_gate(projected) if experts.has_gate else experts.act_fn(projected)
    output_SH = _projected(experts, "down_proj", inner, counts, adapters.get("down_proj"))
    if getattr(experts, "has_post_expert_norm", False):
        output_SH = experts.post_expert_norm(output_SH)
    output_SH = output_SH * weight_TK.reshape(-1)[order_S][:, None]
    inverse_S = torch.empty_like(order_S)
    inverse_S[order_S] = torch.arange(len(order_S), device=order_S.device)
    return output_SH[inverse_S].view(num_tokens, per_token, -1).sum(1).to(hidden_TH.dtype)


def _projected(experts: Any, name: str, x_SI: Tensor, counts: list[int], factors: Factors | None) -> Tensor:
    """Apply one projection, with its adapter, to the tokens of each expert. counts: tokens of each expert, in order."""
    bias_E = getattr(experts, f"{name}_bias", None) if experts.has_bias else None
    outputs = []
    for expert, x_sI in enumerate(x_SI.split(counts)):
        if not counts[expert]:
            continue
        output_sO = _frozen(experts, name, x_sI, expert, None if bias_E is None else bias_E[expert])
        if factors is not None:
            output_sO = output_sO + update(x_sI, factors.a[expert], factors.b[expert], factors.scaling)
        outputs.append(output_sO)
    return torch.cat(outputs)


def _frozen(experts: Any, name: str, x_sI: Tensor, expert: int, bias_O: Tensor | None) -> Tensor:
    """Apply one projection of one expert without adapter, [s, O]."""
    weight, transposed = getattr(experts, name), experts.is_transposed
    if isinstance(weight, Nf4Stack):
        return expert_product(x_sI, weight, expert, transposed=transposed, bias_O=bias_O, dtype=product_type(x_sI))
    return linear(x_sI, weight[expert].t() if transposed else weight[expert], bias_O)


def update(x: Tensor, a_RI: Tensor, b_OR: Tensor, scaling: float) -> Tensor:
    """Return the adapter's output. Outside autocast its fp32 matrices are used in the type of the input."""
    if not torch.is_autocast_enabled(x.device.type):
        a_RI, b_OR = a_RI.to(x.dtype), b_OR.to(x.dtype)
    return linear(linear(x, a_RI), b_OR) * scaling
