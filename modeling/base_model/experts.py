"""Mixture-of-experts weights of a model directory: how many experts, how large, and which tensors hold them.

Files store experts one by one (`experts.0.w1.weight`, [I, H]) or stacked (`experts.gate_up_proj`, [E, 2 I, H]);
transformers stacks them on loading, gate and up projection in one parameter. Never imports torch.

E experts of a layer, H hidden size, I width of an expert.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tunesmith.modeling.base_model.weight_files import Shapes

ROUTER = re.compile(r"(?:^|\.)(?:gate|router|\w*expert_gate)(?:\.|$)")
"""Modules that choose or weigh experts, by a part of their path."""
EXPERTS = re.compile(r"(?:^|\.)(?:experts|local_experts)\.(\d+)\.(.+)$")
"""A tensor of one expert: its number, and the rest of the path."""
_GATED = (("w1", "w3"), ("gate_proj", "up_proj"), ("linear", "linear_v"))
"""Gate and up projection, which transformers concatenates to `gate_up_proj`."""
_DOWN = ("w2", "down_proj", "linear_1")
_STACK = re.compile(r"expert|moe\.|\.(?:input|output)_linear\.weight$")
_BUFFER = ("e_score_correction_bias", "expert_bias")
"""Corrections of the routing that are not trained by gradient."""
MIN_SHARE_IN_4_BITS = 0.95
"""Of the expert weights of a model that is trained with QLoRA."""
PER_TOKEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "top_k_experts",
    "top_k",
)
"""Names of the number of experts that compute one token, in configurations."""


@dataclass(frozen=True)
class ExpertFacts:
    """num_experts: of the layer with the most. num_experts_per_token: None if the configuration does not state it.
    num_params: of all routed experts. width: of one expert's feed-forward layer.
    router_loss_coefficient: of the configuration."""

    num_experts: int
    num_experts_per_token: int | None
    num_params: int
    width: int
    router_loss_coefficient: float | None = None

    def num_active(self, num_params: int) -> int | None:
        """Return the number of weights that compute one token. num_params: of the whole model."""
        if self.num_experts_per_token is None:
            return None
        return num_params - self.num_params + self.num_params * self.num_experts_per_token // self.num_experts


def is_stacked(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor holds the matrices of several experts. Convolutions and some recurrent layers have three
    dimensions, too."""
    return len(shape) == 3 and _STACK.search(name) is not None


def stacked(shapes: Shapes) -> Shapes:
    """Return the shapes with the experts stacked, under the names that the loaded model has, and without buffers."""
    groups: dict[str, dict[str, dict[int, list[int]]]] = {}
    others: Shapes = {}
    for name, shape in shapes.items():
        match = EXPERTS.search(name)
        if name.endswith(_BUFFER):
            continue
        if match is None:
            others[name] = shape
            continue
        module = name[: match.start(1) - 1]
        groups.setdefault(module, {}).setdefault(match[2].removesuffix(".weight"), {})[int(match[1])] = shape
    for module, tensors in groups.items():
        for name, by_expert in _fused(tensors).items():
            others[f"{module}.{name}"] = [len(by_expert), *next(iter(by_expert.values()))]
    return others


def _fused(tensors: dict[str, dict[int, list[int]]]) -> dict[str, dict[int, list[int]]]:
    """Rename the tensors of a layer's experts, with gate and up projection as one."""
    fused: dict[str, dict[int, list[int]]] = {}
    pair = next((pair for pair in _GATED if pair[0] in tensors and pair[1] in tensors), ())
    for name, by_expert in tensors.items():
        if pair and name == pair[0]:
            fused["gate_up_proj"] = {expert: [2 * shape[0], *shape[1:]] for expert, shape in by_expert.items()}
        elif name not in pair:
            fused["down_proj" if name in _DOWN else name] = by_expert
    return fused


def expert_facts(config: Mapping[str, Any], shapes: Shapes) -> ExpertFacts | None:
    """Return what the model's experts are; None if it has none. shapes: of the tensors in the files, or `stacked`."""
    experts = {name: shape for name, shape in stacked(shapes).items() if is_stacked(name, shape)}
    if not experts:
        return None
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    assert text is not None
    sections = [text, text.get("ffn_config") or {}]
    per_token = (section.get(key) for key in PER_TOKEN for section in sections)
    output = ("down_proj", "output_linear.weight")
    down = next((shape for name, shape in experts.items() if name.endswith(output)), next(iter(experts.values())))
    hidden = text.get("hidden_size") or text.get("d_model")
    return ExpertFacts(
        num_experts=max(shape[0] for shape in experts.values()),
        num_experts_per_token=next((value for value in per_token if type(value) is int and value > 0), None),
        num_params=sum(map(prod, experts.values())),
        router_loss_coefficient=text.get("router_aux_loss_coef"),
        width=down[1] if down[2] == hidden else down[2],
    )
