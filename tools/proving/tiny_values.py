"""Values of tiny configurations: sizes by the name of the field, and what follows from no name, by class."""

from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 384, "hidden_size": 64, "n_embd": 64, "d_model": 64, "intermediate_size": 96, "n_inner": 96,
    "ffn_dim": 96, "d_inner": 96, "dim_ff": 96, "dff": 96, "ffn_hidden_size": 96, "dense_intermediate_size": 96,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "attention_heads": 4,
    "num_key_value_heads": 2, "num_kv_heads": 2, "head_dim": 16, "dim_head": 16, "d_head": 16, "v_head_dim": 16,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "qk_head_dim": 24, "kv_lora_rank": 24, "q_lora_rank": 24,
    "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 16, "swa_v_head_dim": 16,
    "global_head_dim": 32, "num_global_key_value_heads": 1,
    "max_position_embeddings": 512, "n_positions": 512, "max_seq_len": 512, "context_length": 512, "n_ctx": 512,
    "sliding_window": 8, "sliding_window_size": 8, "window_size": 8, "attention_window_size": 8, "local_attention": 8,
    "attention_chunk_size": 8, "floor_scale": 8,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "moe_topk": 2, "moe_k": 2, "top_k_experts": 2,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32,
    "expert_ffn_hidden_size": 32, "shared_intermediate_size": 32, "intermediate_size_mlp": 96,
    "shared_experts_intermediate_size": 32, "prefix_dense_intermediate_size": 96, "router_hidden_size": 16,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 2, "num_dense_layers": 2,
    "index_head_dim": 16, "index_n_heads": 4, "index_topk": 8, "o_groups": 2, "o_lora_rank": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "linear_head_dim": 16, "linear_num_heads": 4,
    "mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_ssm": 128, "mamba_chunk_size": 16,
    "mamba_dt_rank": 8, "mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 8, "state_size": 8,
    "time_step_rank": 8, "chunk_size": 16, "n_mamba_heads": 2, "n_groups": 2, "lru_width": 64,
    "attention_hidden_size": 64, "attention_head_dim": 32, "embedding_dim": 64, "num_blocks": 2,
    "max_window_layers": 2, "initializer_range": 0.2, "init_std": 0.2, "embedding_initializer_range": 0.2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "sep_token_id": 3, "cls_token_id": 4,
    "attention_dropout": 0.0, "hidden_dropout": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "dropout": 0.0, "activation_dropout": 0.0,
    "layerdrop": 0.0, "resid_dropout": 0.0, "embed_dropout": 0.0, "residual_dropout": 0.0, "embedding_dropout": 0.0,
    "word_embed_proj_dim": 64, "kv_channels": 16, "vocab_size_per_layer_input": 384, "hidden_size_per_layer_input": 8,
    "laurel_rank": 8, "rotary_dim": 8, "dim_model_base": 32, "block_size": 16,
    "logits_scaling": 2.0, "residual_multiplier": 0.8, "embedding_multiplier": 2.0, "attention_multiplier": 0.2,
    "hidden_size_global": 64, "encoder_hash_byte_group_vocab": 512, "local_attention_window_len": 16,
}  # fmt: skip
"""By the name of a field, where a class uses it."""

MECHANISMS = {
    "num_key_value_heads", "head_dim", "num_experts_per_tok", "n_routed_experts", "sliding_window",
    "num_global_key_value_heads", "num_experts", "moe_intermediate_size", "top_k_experts",
}  # fmt: skip
"""Sizes that are set although the default is None: the class has the mechanism, most of its models use it."""

BEFORE: dict[str, dict[str, Any]] = {
    "DogeForCausalLM": {"is_moe": True},
    "GraniteMoeSharedForCausalLM": {"shared_intermediate_size": 32},
    "Llama4ForCausalLM": {"interleave_moe_layer_step": 2},
    "SmolLM3ForCausalLM": {"sliding_window": 8},
}
"""By class: values set before the defaults of other fields are read."""

_FULL_AND_SLIDING = ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]

OVERRIDES: dict[str, dict[str, Any]] = {
    "BambaForCausalLM": {"num_hidden_layers": 4, "attn_layer_indices": [1, 3]},
    "BltForCausalLM": {"patch_in_forward": True},
    "CohereForCausalLM": {"logit_scale": 0.5},
    "Cohere2ForCausalLM": {"logit_scale": 0.5},
    "Cohere2MoeForCausalLM": {"logit_scale": 0.5},
    "CohereCompassForCausalLM": {
        "layer_types": _FULL_AND_SLIDING,
        "num_hidden_layers": 4,
        "logit_scale": 0.5,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
            for kind in ("full_attention", "sliding_attention")
        },
    },
    "DbrxForCausalLM": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"moe_num_experts": 4, "moe_top_k": 2, "ffn_hidden_size": 32},
    },
    "DeepseekV4ForCausalLM": {"compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}},
    "DogeForCausalLM": {"num_experts": 16, "num_experts_per_tok": 2},
    "Dots1ForCausalLM": {"n_shared_experts": 1, "num_hidden_layers": 4, "layer_types": _FULL_AND_SLIDING},
    "Dots3NoteForCausalLM": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 24,
        "swa_kv_lora_rank": 24,
        "swa_head_dim": 24,
        "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 16,
        "num_key_value_heads": 4,
        "head_dim": 24,
    },
    "Gemma3nForCausalLM": {
        "num_hidden_layers": 8,
        "num_kv_shared_layers": 4,
        "activation_sparsity_pattern": [0.95] * 2 + [0.0] * 6,
        "layer_types": ["sliding_attention", "full_attention"] * 4,
        "intermediate_size": [96] * 8,
    },
    "Gemma4ForCausalLM": {
        "num_hidden_layers": 8,
        "num_kv_shared_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 4,
        "global_head_dim": 32,
        "enable_moe_block": True,
    },
    "Gemma4UnifiedForCausalLM": {
        "num_hidden_layers": 8,
        "num_kv_shared_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 4,
        "global_head_dim": 32,
        "num_global_key_value_heads": 1,
    },
    "Ernie4_5_MoeForCausalLM": {"num_hidden_layers": 4, "moe_layer_start_index": 2, "moe_layer_end_index": 3},
    "FlintForCausalLM": {
        "num_hidden_layers": 4,
        "mlp_only_layers": [0, 1],
        "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
    },
    "GPTNeoForCausalLM": {"num_layers": 4, "attention_types": [[["global", "local"], 2]]},
    "GraniteMoeHybridForCausalLM": {
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
    },
    "HrmTextForCausalLM": {"num_layers_per_stack": 2},
    "InklingForCausalLM": {"logits_mup_width_multiplier": 2.0},
    "JambaForCausalLM": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "LagunaForCausalLM": {
        "num_hidden_layers": 4,
        "layer_types": _FULL_AND_SLIDING,
        "num_attention_heads_per_layer": [4] * 4,
        "mlp_layer_types": ["dense", "sparse", "dense", "sparse"],
    },
    "Lfm2ForCausalLM": {
        "num_hidden_layers": 4,
        "layer_types": ["conv", "conv", "full_attention", "full_attention"],
        "full_attn_idxs": None,
    },
    "Lfm2MoeForCausalLM": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "LongcatFlashForCausalLM": {"zero_expert_num": 2},
    "Mamba2ForCausalLM": {"num_heads": 8},
    "MellumForCausalLM": {
        "num_hidden_layers": 4,
        "layer_types": _FULL_AND_SLIDING,
        "mlp_layer_types": ["dense", "sparse", "dense", "sparse"],
    },
    "MiniMaxM3VLForCausalLM": {
        "num_hidden_layers": 4,
        "index_block_size": 4,
        "index_topk_blocks": 2,
        "layer_types": ["full_attention", "full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
        "mlp_layer_types": ["dense", "sparse", "dense", "sparse"],
    },
    "NemotronHForCausalLM": {
        "num_hidden_layers": 8,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"] * 2,
    },
    "Qwen4ExpForCausalLM": {
        "hc_lowrank": 16,
        "ple_layer_ids": [1],
        "ple_embed_dim": 64,
        "ngram_vocab_size_base": 64,
        "heads_per_ngram": 2,
        "split_ngram_parts": 2,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
        "eos_token_id": 2,
        "bos_token_id": 1,
        "pad_token_id": 0,
    },
    "RecurrentGemmaForCausalLM": {"num_hidden_layers": 6, "w_init_variance_scale": 1.0},
    "ZambaForCausalLM": {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_key_value_heads": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 4,
    },
    "ZayaForCausalLM": {
        "num_experts_per_tok": 1,
        "num_hidden_layers": 4,
        "layer_types": ["hybrid", "hybrid", "hybrid_sliding", "hybrid_sliding"],
    },
}
"""By class: what the sizes and the defaults do not give."""
