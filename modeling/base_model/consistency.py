"""Whether a base model's configuration and weights fit together: checked from headers, before anything is loaded."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError
from tunesmith.modeling.base_model.config_values import head_size, num_frequencies, require_rope_values, require_values

LAYER = re.compile(r"(?:^|\.)(?:layers|layer|blocks|block|h)\.(\d+)\.")
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|shared)\.weight$")
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")
"""Rotary embeddings that transformers computes (`ROPE_INIT_FUNCTIONS`)."""
_ALL_HEADS = ("llama", "phi3", "olmo2")
"""Families with as many key and value heads as query heads unless the configuration says otherwise."""
_LLAMA_SHAPED = (
    *("llama", "mistral", "ministral", "ministral3", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3"),
    *("gemma3_text", "phi3", "olmo", "olmo2", "olmo3", "granite", "cohere", "cohere2", "helium", "seed_oss"),
)
"""Families whose layers have LLaMA's names and widths. Others use the same names for matrices of other widths (gates of
attention, experts, latent keys and values): what does not fit is found when the weights are loaded."""
_MORE_ROWS = {"mllama_text_model": 8}
"""Rows that the embedding of a family has beyond its vocabulary."""
_COMPLETE = "download the model again: config.json and the weights are of different models"

Shapes = Mapping[str, list[int]]


def require_consistent(config: Mapping[str, Any], shapes: Shapes, path: Path) -> None:
    """Raise InputError if the weights do not fit the configuration, with the key or the tensor that is wrong.

    config: content of `config.json` at `path`. shapes: shape of each tensor by name. Without this, layers that the
    configuration does not mention are silently not used, and other contradictions fail after minutes.
    """
    require_values(config, path)
    _require_layers(config, shapes, path)
    _require_vocabulary(config, shapes, path)
    _require_widths(config, shapes, path)
    _require_rope_type(config, path)


def _require_layers(config: Mapping[str, Any], shapes: Shapes, path: Path) -> None:
    """Of each stack of layers: an encoder-decoder model has two."""
    stacks: dict[str, dict[int, str]] = {}
    for name in shapes:
        if (match := LAYER.search(name)) is not None:
            stacks.setdefault(name[: match.start()], {}).setdefault(int(match[1]), name)
    for stack, layers in stacks.items():
        part = next((part for part in ("decoder", "encoder") if part in stack), "")
        key = next(
            (key for key in (f"num_{part}_layers", f"{part}_layers", *_LAYER_KEYS) if isinstance(config.get(key), int)),
            None,
        )
        if key is None or len(layers) == config[key]:
            continue
        if unused := sorted(layer for layer in layers if layer >= config[key]):
            raise InputError(
                f"the weights of {len(unused)} layers are not used by the configuration, such as {layers[unused[0]]}",
                where=f"{path}: {key} is {config[key]}, the weights have {len(layers)} layers",
                remedy=_COMPLETE,
            )
        raise InputError(
            f"{config[key] - len(layers)} of {config[key]} layers have no weights",
            where=f"{path}: {key} is {config[key]}, the weights have {len(layers)} layers",
            remedy=_COMPLETE,
        )


def _require_vocabulary(config: Mapping[str, Any], shapes: Shapes, path: Path) -> None:
    size = config.get("vocab_size")
    if not isinstance(size, int):
        return
    for name, shape in shapes.items():
        if _EMBEDDING.search(name) and shape and shape[0] - _MORE_ROWS.get(config.get("model_type", ""), 0) != size:
            raise InputError(
                f"the vocabulary has {size} tokens in config.json and {shape[0]} rows in {name}, of shape {shape}",
                where=f"{path}: vocab_size",
                remedy=_COMPLETE,
            )
    pad = config.get("pad_token_id")
    if isinstance(pad, int) and pad >= size:
        raise InputError(
            f"the padding token {pad} is not in the vocabulary of {size} tokens",
            where=f"{path}: pad_token_id",
            remedy=f"set pad_token_id to a token below {size}, such as the end-of-text token, or to null",
        )


def _require_widths(config: Mapping[str, Any], shapes: Shapes, path: Path) -> None:
    """Of families whose layers are LLaMA's, which most are."""
    if config.get("model_type") not in _LLAMA_SHAPED:
        return
    hidden, heads, size = config.get("hidden_size"), config.get("num_attention_heads"), head_size(config)
    if hidden is None or heads is None or size is None:
        return
    inner, queries = config.get("intermediate_size"), heads * size
    key_heads = config.get("num_key_value_heads", heads if config.get("model_type") in _ALL_HEADS else 0)
    keys = None if key_heads == 0 else (key_heads or heads) * size
    expected = {
        "embed_tokens": ("hidden_size", [None, hidden]),
        "q_proj": ("num_attention_heads", [queries, hidden]),
        "k_proj": ("num_key_value_heads", [keys, hidden]),
        "v_proj": ("num_key_value_heads", [keys, hidden]),
        "o_proj": ("num_attention_heads", [hidden, queries]),
        "qkv_proj": ("num_attention_heads", [keys and queries + 2 * keys, hidden]),
        "gate_proj": ("intermediate_size", [inner, hidden]),
        "up_proj": ("intermediate_size", [inner, hidden]),
        "down_proj": ("intermediate_size", [hidden, inner]),
    }
    for name, shape in shapes.items():
        if "expert" in name:  # experts have a width of their own
            continue
        key, configured = expected.get(name.removesuffix(".weight").rpartition(".")[2], ("", []))
        if len(shape) == len(configured) and any(
            w is not None and w != s for w, s in zip(configured, shape, strict=True)
        ):
            full = [own if other is None else other for own, other in zip(shape, configured, strict=True)]
            raise InputError(
                f"{name} has the shape {shape}, but config.json gives {full}",
                where=f"{path}: {key} is {config.get(key)}" + (f", head_dim is {size}" if "heads" in key else ""),
                remedy=_COMPLETE,
            )


def _require_rope_type(config: Mapping[str, Any], path: Path) -> None:
    for key in ("rope_scaling", "rope_parameters"):
        parameters = config.get(key)
        if not isinstance(parameters, Mapping):
            continue
        nested = [value for value in parameters.values() if isinstance(value, Mapping)]  # by kind of attention
        for entry in nested or [parameters]:
            kind = entry.get("rope_type", entry.get("type", "default"))
            if kind in ("su", "yarn") and config.get("model_type") == "phi3":
                kind = "longrope"  # as transformers reads it
            if kind not in ROPE_TYPES:
                renamed = ' ("su" is called "longrope" now)' if kind == "su" else ""
                raise InputError(
                    f"the rotary embedding {kind!r} is not known{renamed}",
                    where=f"{path}: {key}.rope_type",
                    remedy="known types: " + ", ".join(ROPE_TYPES),
                )
            require_rope_values(entry, kind, num_frequencies(config, entry), f"{path}: {key}")
