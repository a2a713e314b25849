"""A LLaMA block with adapters on frozen layers over packed documents, as a few large operations that save little
memory.

B is 1, T tokens, H hidden, D head size. Used for training and scoring; generation (with a cache) and unsupported layers
use transformers' own forward.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.kernels.dispatch import Kernels
from tunesmith.kernels.language import product_type
from tunesmith.kernels.lora_block import Adapted
from tunesmith.kernels.nf4 import Nf4
from tunesmith.kernels.varlen_attention import Documents
from tunesmith.modeling.quantization.four_bits import nf4_of

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")


def adapter_of(module: Any) -> Adapted | None:
    """Return the frozen layer with its active adapter; None if unsupported (no adapter, several, merged, disabled, with
    dropout, or not plain LoRA)."""
    base: Any = getattr(module, "base_layer", None)
    weight = _frozen_weight(base)
    if weight is None or module.disable_adapters or module.merged:
        return None
    if base.bias is not None and base.bias.requires_grad:
        return None
    names = [name for name in module.active_adapters if name in module.lora_A]
    if len(names) != 1 or names[0] in module.lora_variant:
        return None
    (name,) = names
    a, b, dropout = module.lora_A[name], module.lora_B[name], module.lora_dropout[name]
    if type(a) is not nn.Linear or b.bias is not None or a.weight.numel() == 0:
        return None
    if not isinstance(dropout, nn.Identity) and (not isinstance(dropout, nn.Dropout) or dropout.p > 0):
        return None
    return Adapted(weight, base.bias, a.weight, b.weight, float(module.scaling[name]))


def _frozen_weight(base: Any) -> Tensor | Nf4 | None:
    """The frozen weight of a linear layer, dense or in 4 bits; None for any other module."""
    if type(base) is nn.Linear:
        return None if base.weight.requires_grad else base.weight
    return nf4_of(base.weight) if type(base).__name__ == "Nf4Linear" else None


def plain_input(x: Tensor, weight: Tensor | Nf4) -> Tensor:
    """Cast x to the dtype of the product: autocast's if enabled, else that of the weight (before quantization)."""
    return x.to(product_type(x) if torch.is_autocast_enabled(x.device.type) else weight.dtype)


def norm_options(module: Any) -> tuple[float, float]:
    """Return (eps, offset added to the weight) of a transformers RMS norm."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", 0.0))
    return eps, 1.0 if type(module).__name__ == "GemmaRMSNorm" else 0.0


def packed_block(layer: Any, kernels: Kernels) -> Callable[..., Tensor]:
    """Return a forward for a LLaMA block: norm, attention, norm, gated feed-forward, with residual additions."""
    original = type(layer).forward

    def forward(hidden_states: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        documents, tables = keywords.get("documents"), keywords.get("position_embeddings")
        if documents is None or tables is None or arguments or _recomputes(layer):
            return original(layer, hidden_states, *arguments, **keywords)
        layers = _fast_layers(layer, hidden_states, kernels)
        if layers is not None:
            mixed = _attention(
                layer.self_attn, layer.input_layernorm, hidden_states, tables, documents, layers, kernels
            )
            hidden_states = hidden_states + mixed
            return hidden_states + _feed_forward(layer.post_attention_layernorm, hidden_states, layers, kernels)
        if kernels.chosen("add_rms_norm", hidden_states) is kernels.reference("add_rms_norm"):
            return original(layer, hidden_states, **keywords)
        return _with_one_norm_less(layer, hidden_states, keywords, kernels)

    return forward


def _with_one_norm_less(layer: Any, hidden_1TH: Tensor, keywords: dict[str, Any], kernels: Kernels) -> Tensor:
    """transformers' block with the first residual addition and the second norm fused."""
    mixed_1TH, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_1TH), **keywords)
    eps, offset = norm_options(layer.post_attention_layernorm)
    fused = kernels.choose("add_rms_norm", hidden_1TH)
    weight_H = layer.post_attention_layernorm.weight
    normed_1TH, hidden_1TH = fused(mixed_1TH.to(hidden_1TH.dtype), hidden_1TH, weight_H, eps, weight_offset=offset)
    return hidden_1TH + layer.mlp(normed_1TH)


def _recomputes(layer: Any) -> bool:
    return bool(getattr(layer, "gradient_checkpointing", False)) and layer.training


def _fast_layers(layer: Any, hidden_1TH: Tensor, kernels: Kernels) -> dict[str, Adapted] | None:
    """The seven layers with their adapters; None if one of them is unsupported or a kernel is disabled."""
    for operation in ("norm_lora_linears", "gated_lora_linear"):
        if kernels.chosen(operation, hidden_1TH) is kernels.reference(operation):
            return None
    if type(layer).__name__ == "GemmaDecoderLayer" or type(layer.mlp.act_fn).__name__ not in ("SiLU", "SiLUActivation"):
        return None
    if layer.input_layernorm.weight.requires_grad:
        return None
    modules = {name: getattr(layer.self_attn, name) for name in ATTENTION}
    modules |= {name: getattr(layer.mlp, name) for name in FEED_FORWARD}
    layers = {name: adapter_of(module) for name, module in modules.items()}
    return (
        None
        if any(adapted is None or adapted.weight_OI.dtype != hidden_1TH.dtype for adapted in layers.values())
        else layers
    )  # type: ignore[return-value]


def _attention(
    attention: Any,
    norm: Any,
    hidden_1TH: Tensor,
    tables: tuple[Tensor, Tensor],
    documents: Documents,
    layers: dict[str, Adapted],
    kernels: Kernels,
) -> Tensor:
    """Output of the attention half, to be added to the residual stream."""
    fused = kernels.choose("norm_lora_linears", hidden_1TH)
    projected = fused(hidden_1TH, norm.weight, norm.variance_epsilon, 0.0, [layers[name] for name in ATTENTION[:3]])
    query, key, value = (t.unflatten(-1, (-1, attention.head_dim)) for t in projected)
    if hasattr(attention, "q_norm"):  # Qwen 3
        query, key = attention.q_norm(query), attention.k_norm(key)
    query, key, value = (t.transpose(1, 2) for t in (query, key, value))
    query, key = kernels.choose("rope", query)(query, key, *tables)
    mixed_1TH = attended(kernels, attention, query, key, value, documents, _window(attention))
    return kernels.choose("lora_linear", mixed_1TH)(mixed_1TH, *layers["o_proj"])


def _window(attention: Any) -> int | None:
    """Sliding window of a layer: stored in the layer by Qwen, in the configuration by Mistral; LLaMA has none."""
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window
    return attention.config.sliding_window if type(attention).__name__ == "MistralAttention" else None


def _feed_forward(norm: Any, hidden_1TH: Tensor, layers: dict[str, Adapted], kernels: Kernels) -> Tensor:
    """Output of the feed-forward half, to be added to the residual stream."""
    fused = kernels.choose("norm_lora_linears", hidden_1TH)
    two = [layers[name] for name in FEED_FORWARD[:2]]
    gate, up = fused(hidden_1TH, norm.weight, norm.variance_epsilon, 0.0, two)
    return kernels.choose("gated_lora_linear", gate)(gate, up, layers["down_proj"])


def attended(
    kernels: Kernels,
    attention: Any,
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    documents: Documents,
    window: int | None,
) -> Tensor:
    """Return packed attention with heads concatenated, [B, T, H * D]. attention: the module, for scale and dropout."""
    mixed_BHTD = kernels.choose("packed_attention", query_BHTD)(
        query_BHTD,
        key_BKTD,
        value_BKTD,
        documents,
        scale=attention.scaling,
        dropout=attention.attention_dropout if attention.training else 0.0,
        window=window,
    )
    return mixed_BHTD.transpose(1, 2).flatten(2)
