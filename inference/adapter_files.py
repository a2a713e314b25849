"""Reading the files of a LoRA adapter in peft's format."""

import json
from pathlib import Path
from typing import Any

import tunesmith.modeling.quantization.bitsandbytes_light  # noqa: F401  # isort: skip  # before peft imports it
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tunesmith.errors import InputError
from tunesmith.model_files import ADAPTER_CONFIG
from tunesmith.modeling.base_model.adapter_files import ADAPTER_WEIGHTS
from tunesmith.modeling.loading.checks import require_finite

_UNSUPPORTED = {
    "modules_to_save": "contains full modules",
    "lora_bias": "has LoRA biases",
    "alora_invocation_tokens": "is activated by tokens (aLoRA)",
    "layer_replication": "replicates layers",
}


def scale_of(config: dict[str, Any], path: str, rank: int) -> float:
    """The factor of B A x for one layer, as in peft. path: of the layer, or of the parameter of experts."""
    alphas = config.get("alpha_pattern") or {}
    alpha = alphas.get(get_pattern_key(list(alphas), path), config["lora_alpha"])
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def read_config(directory: Path) -> dict[str, Any]:
    """Return the configuration. InputError if it cannot be read, or the adapter cannot be served."""
    path = directory / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the adapter: {error}", where=str(path), remedy="export it again") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise incompatible(
            directory, f"its peft_type is {config.get('peft_type') if isinstance(config, dict) else '?'}"
        )
    if not isinstance(config.get("lora_alpha"), int | float):
        raise incompatible(directory, f"its lora_alpha is {config.get('lora_alpha')}")
    for key, reason in _UNSUPPORTED.items():
        if config.get(key):
            raise incompatible(directory, f"it {reason} ({key})")
    return config


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """Return the tensors by name. InputError if they cannot be read or are not finite."""
    path = directory / ADAPTER_WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read the adapter: {error}", where=str(path), remedy="export it again") from error
    require_finite(tensors.items(), path)
    return tensors


def incompatible(directory: Path, why: str) -> InputError:
    """Return the error of an adapter that does not fit its base model."""
    return InputError(
        f"cannot serve the adapter with this base model: {why}",
        where=str(directory),
        remedy="serve it with the base model it was trained on, or merge it: tunesmith export RUN --merge",
    )
