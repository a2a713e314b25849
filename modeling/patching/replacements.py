"""Makes a model use the run's kernels: a table from the class of a module to the replacement of its forward.

Modules keep their parameters and names; only `forward` of the instance is set, so that saving, adapters and merging are
unaffected. Cases that a replacement does not support (a cache during generation, merged or disabled adapters) use the
module's own forward.
"""

from collections.abc import Callable
from functools import partial
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import tunesmith.modeling.quantization.bitsandbytes_light  # noqa: F401  # isort: skip  # before peft imports it
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from tunesmith.kernels.dispatch import Kernels
from tunesmith.kernels.language import product_type
from tunesmith.kernels.nf4 import Nf4
from tunesmith.modeling.patching.adapted_block import adapter_of, attended, norm_options, packed_block, plain_input
from tunesmith.modeling.quantization.four_bits import nf4_of

Forward = Callable[..., Any]


def use_kernels(model: nn.Module, kernels: Kernels, *, sharded: bool = False) -> set[str]:
    """Replace the forward of every module in the table below. Returns the operations in use.

    sharded: weights are sharded over ranks (ZeRO-3) and gathered only for their own module's forward: replacements that
    read the weights of other modules are left out.
    """
    used: set[str] = set()
    for path, module in model.named_modules():
        if ".lora_" in path:  # an adapter's matrices: their layer computes with them
            continue
        name = _name(module)
        known = (
            REPLACEMENTS.get(name)
            if type(module).__module__.startswith(("transformers.", "peft.", "torch.nn.", "tunesmith."))
            else None
        )
        if known is not None and sharded and known.spans_modules:
            continue
        forward = known.replace(module, kernels) if known is not None else None
        if known is not None and forward is not None:
            module.forward = forward
            used.update(known.operations)
    return used


def _name(module: Any) -> str:
    """The key in the table below: peft's layers have the names of the layers that they wrap."""
    return f"lora.{type(module).__name__}" if isinstance(module, LoraLayer) else type(module).__name__


class Replacement(NamedTuple):
    """How the forward of a module class is replaced, and the operations that it then uses."""

    replace: Callable[[Any, Kernels], Forward | None]
    """Returns the new forward of a module; None if the module is not supported."""
    operations: tuple[str, ...]
    spans_modules: bool = False
    """Whether it reads weights of other modules, or changes how gradients are collected."""


def _rms_norm(module: Any, kernels: Kernels) -> Forward:
    eps, offset = norm_options(module)

    def forward(hidden_states: Tensor) -> Tensor:
        return kernels.choose("rms_norm", hidden_states)(hidden_states, module.weight, eps, weight_offset=offset)

    return forward


def _layer_norm(module: Any, kernels: Kernels) -> Forward | None:
    if len(module.normalized_shape) != 1 or module.weight is None:
        return None

    def forward(input: Tensor) -> Tensor:
        return kernels.choose("layer_norm", input)(input, module.weight, module.bias, module.eps)

    return forward


def gated_operation(activation: nn.Module) -> tuple[str, dict[str, bool]] | None:
    """Return the operation for f(gate) * up and its options; None if f is neither SiLU nor GELU."""
    name = type(activation).__name__
    if name in ("SiLU", "SiLUActivation"):
        return "swiglu", {}
    if name in ("GELUTanh", "NewGELUActivation"):
        return "geglu", {"tanh": True}
    return ("geglu", {"tanh": False}) if name == "GELUActivation" else None


def _gated_feed_forward(module: Any, kernels: Kernels) -> Forward | None:
    """LLaMA-style: down(f(gate(x)) * up(x))."""
    known = gated_operation(module.act_fn)
    if known is None:
        return None
    operation, options = known

    def forward(x: Tensor) -> Tensor:
        gate = module.gate_proj(x)
        return module.down_proj(kernels.choose(operation, gate)(gate, module.up_proj(x), **options))

    return forward


def _rotary_attention(module: Any, kernels: Kernels) -> Forward | None:
    """transformers' own forward with `apply_rotary_pos_emb` rebound, so that it works across versions."""
    original = type(module).forward
    if "apply_rotary_pos_emb" not in original.__code__.co_names:
        return None

    def rotated(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        assert unsqueeze_dim == 1
        return kernels.choose("rope", query)(query, key, cos, sin)

    names = {**original.__globals__, "apply_rotary_pos_emb": rotated}
    copied = FunctionType(original.__code__, names, original.__name__, original.__defaults__, original.__closure__)
    copied.__kwdefaults__ = original.__kwdefaults__
    return MethodType(copied, module)


def _packed_feed_forward(module: Any, kernels: Kernels) -> Forward | None:
    """Phi 3: gate and up in one projection."""
    if gated_operation(module.activation_fn) != ("swiglu", {}):
        return None

    def forward(hidden_states: Tensor) -> Tensor:
        gate_up = module.gate_up_proj(hidden_states)
        return module.down_proj(kernels.choose("swiglu_packed", gate_up)(gate_up))

    return forward


def _packed_attention(module: Any, kernels: Kernels) -> Forward:
    """Phi 3: query, key and value in one projection. With a cache, or without documents, its own forward."""
    original, config = type(module).forward, module.config

    def forward(hidden_states: Tensor, *arguments: Any, **keywords: Any) -> tuple[Tensor, None]:
        documents, tables = keywords.get("documents"), keywords.get("position_embeddings")
        if documents is None or tables is None or arguments or keywords.get("past_key_values") is not None:
            return original(module, hidden_states, *arguments, **keywords)
        qkv = module.qkv_proj(hidden_states)
        heads = (config.num_attention_heads, module.num_key_value_heads)
        query, key, value = kernels.choose("rope_packed", qkv)(qkv, *tables, *heads)
        return module.o_proj(attended(kernels, module, query, key, value, documents, config.sliding_window)), None

    return forward


def _adapted_linear(module: Any, kernels: Kernels) -> Forward:
    original = type(module).forward

    def forward(x: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        adapted = None if arguments or keywords else adapter_of(module)
        if adapted is None:
            return original(module, x, *arguments, **keywords)
        plain = plain_input(x, adapted.weight_OI)
        chosen = kernels.chosen("lora_linear", plain)
        if isinstance(adapted.weight_OI, Nf4) and (
            plain.dtype != adapted.weight_OI.dtype or chosen is kernels.reference("lora_linear")
        ):
            return original(module, x)  # the reference would save the dequantized weight for the backward pass
        return chosen.function(plain, *adapted)

    return forward


def _four_bit_linear(module: Any, kernels: Kernels) -> Forward:
    """A 4-bit layer whose adapter lora_linear does not support, e.g. with dropout: dequantized by the run's kernel."""

    def forward(x: Tensor) -> Tensor:
        weight = nf4_of(module.weight)
        if weight is None or weight.dtype != product_type(x):
            return module.product(x)
        return module.product(x, partial(kernels.choose("nf4_dequantise", weight.packed), weight))

    return forward


def _four_bit_experts(module: Any, kernels: Kernels) -> Forward:
    """Experts in 4 bits, dequantized by the run's kernel."""

    def forward(number: int, dtype: torch.dtype) -> Tensor:
        weight = module.expert(number)
        if dtype != weight.dtype:
            return type(module).forward(module, number, dtype)
        return kernels.choose("nf4_dequantise", weight.packed)(weight, dtype).view(module.shape[1:])

    return forward


def _trained_linear(module: Any, kernels: Kernels) -> Forward | None:
    if not module.weight.requires_grad:
        return None

    def forward(input: Tensor) -> Tensor:
        return kernels.choose("trained_linear", module.weight)(module.weight, module.bias, input)

    return forward


def _trained_embedding(module: Any, kernels: Kernels) -> Forward | None:
    rare = module.max_norm is not None or module.scale_grad_by_freq or module.sparse
    if rare or not module.weight.requires_grad:
        return None

    def forward(input: Tensor) -> Tensor:
        return kernels.choose("trained_embedding", module.weight)(module.weight, module.padding_idx, input)

    return forward


_NORM = Replacement(_rms_norm, ("rms_norm",))
_LAYER_NORM = Replacement(_layer_norm, ("layer_norm",))
_SWIGLU = Replacement(_gated_feed_forward, ("swiglu",))
_GEGLU = Replacement(_gated_feed_forward, ("geglu",))
_ROTARY = Replacement(_rotary_attention, ("rope",))
_BLOCK = Replacement(packed_block, ("add_rms_norm", "norm_lora_linears", "gated_lora_linear"), spans_modules=True)

REPLACEMENTS: dict[str, Replacement] = {
    "LlamaRMSNorm": _NORM,
    "LlamaMLP": _SWIGLU,
    "LlamaAttention": _ROTARY,
    "LlamaDecoderLayer": _BLOCK,
    "MistralRMSNorm": _NORM,
    "MistralMLP": _SWIGLU,
    "MistralAttention": _ROTARY,
    "MistralDecoderLayer": _BLOCK,
    "Qwen2RMSNorm": _NORM,
    "Qwen2MLP": _SWIGLU,
    "Qwen2Attention": _ROTARY,
    "Qwen2DecoderLayer": _BLOCK,
    "Qwen3RMSNorm": _NORM,
    "Qwen3MLP": _SWIGLU,
    "Qwen3Attention": _ROTARY,
    "Qwen3DecoderLayer": _BLOCK,
    "GemmaRMSNorm": _NORM,
    "GemmaMLP": _GEGLU,
    "GemmaAttention": _ROTARY,
    "GemmaDecoderLayer": Replacement(packed_block, ("add_rms_norm",), spans_modules=True),
    "Phi3RMSNorm": _NORM,
    "Phi3MLP": Replacement(_packed_feed_forward, ("swiglu_packed",)),
    "Phi3Attention": Replacement(_packed_attention, ("rope_packed",)),
    "LayerNorm": _LAYER_NORM,  # GPT-2
    "Linear": Replacement(_trained_linear, ("trained_linear",), spans_modules=True),
    "Embedding": Replacement(_trained_embedding, ("trained_embedding",), spans_modules=True),
    "lora.Linear": Replacement(_adapted_linear, ("lora_linear",), spans_modules=True),
    "lora.Linear4bit": Replacement(_adapted_linear, ("lora_linear",), spans_modules=True),
    "Nf4Stack": Replacement(_four_bit_experts, ("nf4_dequantise",), spans_modules=True),
    "Nf4Linear": Replacement(_four_bit_linear, ("nf4_dequantise",), spans_modules=True),
}
