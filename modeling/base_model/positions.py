"""The sequence length that a model was trained for, from its configuration."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.modeling.base_model.config_values import of_text

_STRETCHING = ("linear", "dynamic", "yarn")
"""Rotary scalings whose `max_position_embeddings` may be the length before scaling."""


def trained_positions(config: Mapping[str, Any]) -> int | None:
    """Return the length in tokens, with rotary scaling; None if it is not stated, or the model is an encoder-decoder.

    The factor of linear, dynamic and yarn scaling applies to `original_max_position_embeddings`, or without that key to
    `max_position_embeddings`. For other scalings (llama3, longrope) `max_position_embeddings` is the scaled length.
    """
    length = config.get("max_position_embeddings") or config.get("n_positions")
    if not isinstance(length, int) or config.get("is_encoder_decoder"):
        return None
    return max([length, *(_scaled(length, scaling) for scaling in _scalings(config))])


def positions_warning(max_seq_len: int, positions: int | None, longest: int | None) -> str | None:
    """Return a warning if sequences may be longer than those that the model was trained with; None otherwise. longest:
    tokens of the longest row, if there is one."""
    if positions is None or max_seq_len <= positions:
        return None
    rows = "" if longest is None else f"; the longest row has {longest:,} tokens"
    return (
        f"data.max_seq_len is {max_seq_len:,}, but the model was trained with {positions:,} positions{rows}; set "
        f"data.max_seq_len to {positions} or less, or use a model with more positions"
    )


def positions_in(directory: Path) -> int | None:
    """Return `trained_positions` of a model directory; None if its configuration cannot be read."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return trained_positions(of_text(config)) if isinstance(config, dict) else None


def _scalings(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rotary settings: one, or one per kind of layer."""
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(settings, Mapping):
        return []
    inner = [value for value in settings.values() if isinstance(value, Mapping)]
    return inner or [settings]


def _scaled(length: int, scaling: Mapping[str, Any]) -> int:
    factor = scaling.get("factor")
    if scaling.get("rope_type", scaling.get("type")) not in _STRETCHING or not isinstance(factor, (int, float)):
        return 0
    original = scaling.get("original_max_position_embeddings")
    return int((original if isinstance(original, int) else length) * factor)
