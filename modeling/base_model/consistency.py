"""Whether a base model's configuration and weights fit together: checked from headers, before anything is loaded."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError

LAYER = re.compile(r"(?:^|\.)(?:layers|layer|block|h)\.(\d+)\.")
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|shared)\.weight$")
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")
"""Rotary embeddings that transformers computes (`ROPE_INIT_FUNCTIONS`)."""
_COMPLETE = "download the model again: config.json and the weights are of different models"

Shapes = Mapping[str, list[int]]


def require_consistent(config: Mapping[str, Any], shapes: Shapes, path: Path) -> None:
    """Raise InputError if the weights do not fit the configuration, with the key or the tensor that is wrong.

    config: content of `config.json` at `path`. shapes: shape of each tensor by name. Without this, layers that the
    configuration does not mention are silently not used, and other contradictions fail after minutes.
    """
    _require_layers(config, shapes, path)
    _require_vocabulary(config, shapes, path)
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
        if _EMBEDDING.search(name) and shape and shape[0] != size:
            raise InputError(
                f"the vocabulary has {size} tokens in config.json and {shape[0]} rows in {name}",
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


def _require_rope_type(config: Mapping[str, Any], path: Path) -> None:
    for key in ("rope_scaling", "rope_parameters"):
        parameters = config.get(key)
        if not isinstance(parameters, Mapping):
            continue
        nested = [value for value in parameters.values() if isinstance(value, Mapping)]  # by kind of attention
        for entry in nested or [parameters]:
            kind = entry.get("rope_type", entry.get("type", "default"))
            if kind == "su" and config.get("model_type") == "phi3":
                continue  # transformers reads it as longrope
            if kind not in ROPE_TYPES:
                renamed = ' ("su" is called "longrope" now)' if kind == "su" else ""
                raise InputError(
                    f"the rotary embedding {kind!r} is not known{renamed}",
                    where=f"{path}: {key}.rope_type",
                    remedy="known types: " + ", ".join(ROPE_TYPES),
                )
