"""Tiny mixture-of-experts models, one per way in which families hold experts."""

from typing import Any

import torch
import transformers

_SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "num_experts_per_tok": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MODELS: dict[str, dict[str, Any]] = {
    # Stored one by one, w1, w2, w3.
    "Mixtral": {"num_local_experts": 4},
    # Stored one by one; one layer without experts, whose projections have the names of an expert's.
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 24, "mlp_only_layers": [0]},
    # With a shared expert and its gate.
    "Qwen2Moe": {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
    # Stored stacked and transposed, with biases; gate and up projection interleaved.
    "GptOss": {"num_local_experts": 4, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    # Stored stacked under other names.
    "GraniteMoe": {"num_local_experts": 4},
    # Experts that peft's own forward computes.
    "JetMoe": {"num_local_experts": 4, "kv_channels": 8},
}
DENSE: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "Phi3": {},
    "Falcon": {"num_kv_heads": 4},
    "GPTNeoX": {},
}


def make_moe(family: str, **options: Any) -> Any:
    """The causal language model of a family, fp32, with weights large enough that every expert matters."""
    own = MODELS.get(family, DENSE.get(family))
    assert own is not None
    config = getattr(transformers, f"{family}Config")
    known = {key: value for key, value in _SIZES.items() if (family, key) != ("Falcon", "head_dim")}
    suffix = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}{suffix}")(config(**{**known, **own, **options}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model.eval()


def fill(model: torch.nn.Module, scale: float = 0.2) -> None:
    """Give every trained weight an effect: peft initializes one matrix of an adapter with zeros."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
