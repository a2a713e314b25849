"""Values of a base model's configuration that no model can have: named before transformers fails on them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError

_SIZES = (
    "vocab_size",
    *("hidden_size", "n_embd", "d_model", "dim", "d_kv", "d_ff", "hidden_dim", "intermediate_size", "head_dim"),
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers"),
    *("decoder_layers", "num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"),
    *("decoder_attention_heads", "num_key_value_heads", "max_position_embeddings", "n_positions"),
)
_DIVIDED = (
    ("hidden_size", "num_attention_heads"),
    ("n_embd", "n_head"),
    ("dim", "n_heads"),
    ("d_model", "encoder_attention_heads"),
    ("d_model", "decoder_attention_heads"),
    ("num_attention_heads", "num_key_value_heads"),
)
"""Pairs of keys of which the first is a multiple of the second."""
_HEAD_SIZES = {"qwen3": 128, "gemma": 256, "gemma3": 256, "gemma3_text": 256}
"""Default values of head_dim in transformers; other families divide the hidden size by the number of heads."""
_DTYPES = ("float16", "bfloat16", "float32", "float64", "half", "float", "double", "auto")
_ROPE_KEYS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
_REMEDY = "correct it, or download the model again"


def of_text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a `config.json` that describes the text model; all of it if the model is not multimodal."""
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config


def require_values(config: Mapping[str, Any], path: Path) -> None:
    """Raise InputError for sizes that are not positive or do not divide, and for an unknown dtype.

    config: content of `config.json` at `path`.
    """
    for key in _SIZES:
        value = config.get(key)
        by_layer = value if isinstance(value, list) and value else [value]
        if value is not None and any(type(size) is not int or size < 1 for size in by_layer):
            raise _wrong(f"{key} is {value!r}, not a positive number", f"{path}: {key}")
    own_size = config.get("head_dim") is not None or config.get("model_type") in (*_HEAD_SIZES, "t5", "mt5")
    for first, second in _DIVIDED:
        whole, part = config.get(first), config.get(second)
        if not isinstance(whole, int) or not isinstance(part, int) or (own_size and second != "num_key_value_heads"):
            continue
        if whole % part:
            raise _wrong(f"{first} {whole} is not a multiple of {second} {part}", f"{path}: {second}")
    key = "dtype" if "dtype" in config else "torch_dtype"
    dtype = config.get(key)
    if dtype is not None and (not isinstance(dtype, str) or dtype.removeprefix("torch.") not in _DTYPES):
        raise InputError(
            f"the dtype {dtype!r} is not known", where=f"{path}: {key}", remedy=f"use one of: {', '.join(_DTYPES[:4])}"
        )


def require_rope_values(entry: Mapping[str, Any], kind: str, num_frequencies: int | None, where: str) -> None:
    """Raise InputError if the parameters of a rotary embedding lack one that its type needs, or have a wrong one.

    entry: the parameters. num_frequencies: number of frequencies of a head; None if unknown.
    """
    for key in _ROPE_KEYS.get(kind, ()):
        value = entry.get(key)
        if value is None:
            raise _wrong(f"the rotary embedding {kind} has no {key}", where)
        if not key.endswith(("short_factor", "long_factor")):
            if not _is_positive(value):
                raise _wrong(f"{key} is {value!r}, not a positive number", f"{where}.{key}")
        elif not isinstance(value, list) or not all(map(_is_positive, value)):
            raise _wrong(f"{key} is not a list of positive numbers", f"{where}.{key}")
        elif num_frequencies is not None and len(value) != num_frequencies:
            raise _wrong(f"{key} has {len(value)} factors for {num_frequencies} frequencies", f"{where}.{key}")


def head_size(config: Mapping[str, Any]) -> int | None:
    """Return the size of an attention head; None if the configuration does not state it."""
    if (size := config.get("head_dim") or _HEAD_SIZES.get(config.get("model_type", ""))) is not None:
        return size
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    return hidden // heads if hidden and heads else None


def num_frequencies(config: Mapping[str, Any], entry: Mapping[str, Any]) -> int | None:
    """Return the number of frequencies of a head; None if the configuration does not state it. entry: parameters of
    the rotary embedding."""
    size = head_size(config)
    partial = entry.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1.0
    return None if size is None else int(size * partial) // 2


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _wrong(what: str, where: str) -> InputError:
    return InputError(what, where=where, remedy=_REMEDY)
