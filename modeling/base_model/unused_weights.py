"""Weights in a model's files that its class does not have: layers for the prediction of further tokens, and keys and
values of layers that use those of earlier ones. Never imports torch."""

import re
from collections.abc import Mapping
from typing import Any

from tunesmith.modeling.base_model.consistency import LAYER
from tunesmith.modeling.base_model.weight_files import Shapes

_PREDICTION = re.compile(r"(?:^|\.)mtp(?:_\w+)?\.")
"""Modules for multi-token prediction outside the list of layers (ERNIE 4.5, Qwen 3.5)."""
_KEYS_AND_VALUES = re.compile(r"\.self_attn\.[kv]_(?:proj|norm)\.")


def without_unused(config: Mapping[str, Any], shapes: Shapes) -> Shapes:
    """Return the shapes without those of weights that transformers does not load, so that they are neither trained nor
    exported: of multi-token prediction (`num_nextn_predict_layers` layers after the others: DeepSeek V3, section 2.2 of
    arXiv:2412.19437, GLM 4.5; or modules called mtp), and keys and values of the last `num_kv_shared_layers` layers
    (Gemma 3n and 4)."""
    shapes = {name: shape for name, shape in shapes.items() if not _PREDICTION.search(name)}
    own, further, shared = (
        value if type(value := config.get(key)) is int else 0
        for key in ("num_hidden_layers", "num_nextn_predict_layers", "num_kv_shared_layers")
    )
    if not own:
        return shapes
    return {
        name: shape
        for name, shape in shapes.items()
        if not own <= _layer(name) < own + further
        and not (_layer(name) >= own - shared and _KEYS_AND_VALUES.search(name))
    }


def _layer(name: str) -> int:
    match = LAYER.search(name)
    return -1 if match is None else int(match[1])
