"""Tiny multimodal checkpoints with the structure of published ones, each with a vision tower and a projector."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Llama4Config,
    Llama4ForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)

from tests.conftest import make_tokenizer

_TOKENS: Any = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_TEXT: Any = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "initializer_range": 0.1,
    **_TOKENS,
}
_VISION: Any = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def _gemma3() -> Any:
    text: Any = {**_TEXT, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
    text["query_pre_attn_scalar"] = 8
    vision: Any = {**_VISION, "model_type": "siglip_vision_model", "image_size": 16, "patch_size": 4}
    special: Any = {"boi_token_index": 380, "eoi_token_index": 381, "image_token_index": 382}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **special, **_TOKENS)
    return Gemma3ForConditionalGeneration(config)


def _qwen3_5() -> Any:
    text: Any = {**_TEXT, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2}
    text |= {"linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
    mrope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0], "mrope_interleaved": True}
    text["rope_parameters"] = {**mrope, "partial_rotary_factor": 0.5}
    vision: Any = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"patch_size": 4, "num_position_embeddings": 16}
    special: Any = {"image_token_id": 380, "video_token_id": 381}
    special |= {"vision_start_token_id": 382, "vision_end_token_id": 383}
    return Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision, **special, **_TOKENS))


def _llama4() -> Any:
    text: Any = {**_TEXT, "intermediate_size_mlp": 64, "num_local_experts": 4, "attention_chunk_size": 64}
    text |= {"interleave_moe_layer_step": 2, "num_hidden_layers": 2, "no_rope_layer_interval": 2}
    vision: Any = {**_VISION, "image_size": 16, "patch_size": 4, "vision_output_dim": 32, "projector_input_dim": 32}
    vision |= {"projector_output_dim": 32, "intermediate_size": 64}
    special: Any = {"boi_token_index": 380, "eoi_token_index": 381, "image_token_index": 382}
    return Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=vision, **special, **_TOKENS))


def _mistral3() -> Any:
    vision: Any = {**_VISION, "model_type": "pixtral", "image_size": 16, "patch_size": 4, "head_dim": 8}
    text: Any = {**_TEXT, "model_type": "mistral"}
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=380, **_TOKENS)
    return Mistral3ForConditionalGeneration(config)


FAMILIES = {"gemma3": _gemma3, "qwen3_5": _qwen3_5, "llama4": _llama4, "mistral3": _mistral3}


def make_multimodal(directory: Path, family: str) -> Path:
    """Write a tiny checkpoint in bf16, in two files with an index, with a processor's file and a tensor of no module
    (published checkpoints of Qwen 3.5 have a head for drafting, which transformers does not load)."""
    make_tokenizer(directory)
    torch.manual_seed(0)
    model = FAMILIES[family]().to(torch.bfloat16)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(directory, max_shard_size="60KB")
    (directory / "preprocessor_config.json").write_text(json.dumps({"do_resize": True, "note": family}))
    if family == "qwen3_5":
        _add_tensor(directory, "mtp.fc.weight")
    return directory


def _add_tensor(directory: Path, name: str) -> None:
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    file = sorted(set(index["weight_map"].values()))[-1]
    save_file({**load_file(directory / file), name: torch.randn(3, 5).half()}, directory / file, {"format": "pt"})
    index["weight_map"][name] = file
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model directory by name."""
    return {k: v for path in sorted(directory.glob("*.safetensors")) for k, v in load_file(path).items()}
