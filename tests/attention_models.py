"""Tiny models with every kind of attention: one class for each mechanism, with all weights random."""

import torch
import transformers

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
WINDOWS = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"] * 2}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6}
SHARED = {"num_kv_shared_layers": 2, "vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 8}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

MODELS = {
    "Gemma2": {"head_dim": 8, **WINDOWS, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "GptOss": {"head_dim": 8, **WINDOWS, **EXPERTS, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "Llama4": {
        "head_dim": 8, "intermediate_size_mlp": 48, "attention_chunk_size": 5, "no_rope_layers": [1, 1, 1, 0],
        "attn_temperature_tuning": True, "floor_scale": 4, "attn_scale": 0.5, **EXPERTS,
    },
    "DeepseekV3": {
        **LATENT, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
        "moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    },
    "Gemma3n": {
        "head_dim": 8, **WINDOWS, **SHARED, "laurel_rank": 4, "altup_num_inputs": 2, "intermediate_size": [48] * 4,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "Gemma4": {"head_dim": 8, "global_head_dim": 16, **WINDOWS, **SHARED},
    "Cohere2": {"head_dim": 8, **WINDOWS},
    "StableLm": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
}  # fmt: skip
"""By the prefix of the class, what differs from SIZES."""


def make_model(name: str, **other_sizes: object) -> transformers.PreTrainedModel:
    """Return the model in fp32 and evaluation mode, with transformers' eager attention and experts."""
    torch.manual_seed(0)
    multimodal = name in ("Llama4", "Gemma3n", "Gemma4")
    config_class = getattr(transformers, f"{name}TextConfig" if multimodal else f"{name}Config")
    config = config_class(
        **{**SIZES, **MODELS[name], **other_sizes}, attn_implementation="eager", experts_implementation="eager"
    )
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            spread, center = (0.2, 0.0) if parameter.ndim > 1 else (0.3, float("norm" in parameter_name))
            parameter.copy_(center + spread * torch.randn(parameter.shape))
    return model.eval()
