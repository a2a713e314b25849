"""The cut model: the first layers up to one of each kind, with the real weights."""

import torch
import transformers

from tunesmith.modeling.proof.cut import cut_model, prove_directory

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def saved(directory, name, **own):
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**{**SIZES, **own}))
    model.save_pretrained(directory)
    return model


def test_equal_layers_are_cut_to_two_with_the_real_weights(tmp_path):
    whole = dict(saved(tmp_path, "LlamaForCausalLM", num_hidden_layers=5).named_parameters())
    model, cut = cut_model(tmp_path)
    assert cut == ["5 layers -> the first 2"]
    kept = dict(model.named_parameters())
    assert {name for name in whole if ".layers.2." in name}.isdisjoint(kept)
    assert all(torch.equal(weight, whole[name]) for name, weight in kept.items())


def test_layers_reach_one_of_each_kind_and_windows_are_shortened(tmp_path):
    kinds = ["sliding_attention"] * 3 + ["full_attention"] + ["sliding_attention"] * 2
    saved(tmp_path, "Gemma3ForCausalLM", num_hidden_layers=6, layer_types=kinds, sliding_window=512)
    model, cut = cut_model(tmp_path)
    assert cut == ["6 layers -> the first 4", "sliding_window 512 -> 16"]
    assert model.config.layer_types == kinds[:4]
    assert model.model.layers[0].self_attn.sliding_window in (16, 17)
    findings, cut = prove_directory(tmp_path)
    assert (findings.packing, findings.loss, findings.cached_generation, len(cut)) == (True, "fused", True, 2)


def test_dense_and_sparse_layers_are_kinds(tmp_path):
    saved(tmp_path, "Qwen3MoeForCausalLM", num_hidden_layers=4, mlp_only_layers=[0, 1], num_experts=4,
          num_experts_per_tok=2, moe_intermediate_size=16)  # fmt: skip
    assert cut_model(tmp_path)[1] == ["4 layers -> the first 3"]


def test_a_model_that_loads_only_with_all_its_layers_is_not_cut(tmp_path):
    """Some layers of Zamba share their weights with the first of their kind."""
    saved(
        tmp_path, "ZambaForCausalLM", num_hidden_layers=6, attention_hidden_size=64, attention_head_dim=16,
        attn_layer_period=3, attn_layer_offset=1, mamba_d_state=4, n_mamba_heads=2, mamba_dt_rank=4,
        layers_block_type=["mamba", "hybrid", "mamba", "mamba", "hybrid", "mamba"],
    )  # fmt: skip
    model, cut = cut_model(tmp_path)
    assert (len(model.model.layers), cut) == (6, [])
