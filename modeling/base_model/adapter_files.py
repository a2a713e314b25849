"""A directory with a LoRA adapter: its base model, settings and what it adapts. Never imports torch."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tunesmith.configs.sections.method import Lora
from tunesmith.errors import InputError
from tunesmith.model_files import ADAPTER_CONFIG
from tunesmith.modeling.base_model.adapter_targets import is_target
from tunesmith.modeling.base_model.multimodal import ADAPTER_PREFIX, is_outside_text_model, text_model_in
from tunesmith.modeling.base_model.source import cached_hub_model
from tunesmith.modeling.base_model.tensor_files import read_header
from tunesmith.modeling.base_model.weight_files import read_object

ADAPTER_WEIGHTS = "adapter_model.safetensors"
SETTINGS = {"r": 8, "lora_alpha": 8, "use_rslora": False, "use_dora": False}
"""Keys of adapter_config.json with peft's defaults that must be equal where an adapter is continued: with another
scaling the same weights give another model."""
_IN_RECIPES = {"r": "lora_rank"}
"""Names of settings in a recipe's method that differ."""
_NOT_IN_RECIPES = ("alpha_pattern", "rank_pattern", "alora_invocation_tokens", "layer_replication")
"""Settings of peft that a recipe does not have."""
_CHANGE_THE_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Initializations of peft that change the weights of the base model."""


def adapter_base(directory: Path) -> Path:
    """Return the directory of an adapter's base model. Relative paths are resolved from the adapter, then from the
    working directory; a hub id is looked up in the hub's cache on this machine."""
    path = directory / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        name, revision = str(config.get("base_model_name_or_path") or ""), config.get("revision")
    except (OSError, ValueError, AttributeError) as error:
        remedy = "export it again, or copy it again from its source"
        raise InputError(f"the adapter cannot be read: {error}", where=str(path), remedy=remedy) from error
    tried = [(directory / name).resolve(), Path(name).resolve()]
    for candidate in tried:
        if name and (candidate / "config.json").is_file():
            return candidate
    if (cached := cached_hub_model(name, revision)) is not None:
        return cached
    raise InputError(
        f"the adapter's base model {name!r} is not on this machine",
        where=str(path),
        remedy=f"tried {' and '.join(map(str, tried))} and the hub's cache; download it (hf download {name}"
        + (f" --revision {revision}" if revision else "")
        + ") or set base_model_name_or_path to its directory",
    )


def adapter_directory(name: str, recipe_dir: Path) -> Path | None:
    """Return the directory of an adapter that a recipe names; None if the name is anything else. Paths are resolved as
    those of a base model."""
    for path in ((recipe_dir / Path(name).expanduser()).resolve(), Path(name).expanduser().resolve()):
        if path.exists():
            is_adapter = (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file()
            return path if is_adapter else None
    return None


def require_plain_lora(adapter: Path) -> None:
    """Raise InputError if an adapter is of another method than LoRA, or has whole modules or LoRA biases."""
    path = adapter / ADAPTER_CONFIG
    config: dict[str, Any] = read_object(path)
    what = f"peft_type {config.get('peft_type')}" if config.get("peft_type") != "LORA" else None
    what = what or next((key for key in ("modules_to_save", "lora_bias") if config.get(key)), None)
    if what is not None:
        raise InputError(
            f"the adapter is not plain LoRA ({what})",
            where=str(path),
            remedy="merge it with peft, and set model.base to the result",
        )


def require_text_only(adapter: Path, base: Path) -> None:
    """Raise InputError if an adapter on a multimodal class changes other parts than the text model, which alone is
    loaded. base: directory of its base model."""
    if text_model_in(base) is None:
        return
    others = sorted({_adapted(name) for name in tensor_names(adapter) if is_outside_text_model(name)})
    if others:
        raise InputError(
            f"{len(others)} modules that the adapter changes are not part of the text model, which alone is loaded, "
            f"such as {others[0].removeprefix(ADAPTER_PREFIX)}",
            where=str(adapter / ADAPTER_WEIGHTS),
            remedy="merge it with peft into the multimodal model, and use the result; or use an adapter on the text "
            "model alone",
        )


def require_same_settings(method: Lora, adapter: Path, key: str) -> None:
    """Raise InputError if a recipe's method differs from the adapter that training continues from: with another scaling
    or other modules the same weights give another model. key: of the recipe, for the message."""
    config: dict[str, Any] = read_object(adapter / ADAPTER_CONFIG)
    stored = {_IN_RECIPES.get(name, name): config.get(name, default) for name, default in SETTINGS.items()}
    other = [
        f"{own} is {value} in the adapter and {getattr(method, own)} in the recipe"
        for own, value in stored.items()
        if value != getattr(method, own)
    ]
    other += [f"the adapter has {key}, which recipes do not" for key in _NOT_IN_RECIPES if config.get(key)]
    if str(config.get("init_lora_weights", True)).lower().startswith(_CHANGE_THE_BASE):
        other.append(f"init_lora_weights {config['init_lora_weights']} of the adapter changed the base model")
    named = {_adapted(name) for name in tensor_names(adapter) if ".lora_" in name}
    targets = method.target_modules
    if not isinstance(targets, str) and (odd := sorted(t for t in targets if not any(is_target(n, t) for n in named))):
        other.append(f"target_modules has {odd[0]}, which the adapter does not adapt")
    if other:
        settings = ", ".join(f"{own}: {value}" for own, value in stored.items())
        raise InputError(
            f"the recipe contradicts the adapter that training continues from: {'; '.join(other)}",
            where=f"key method; {key}: {adapter / ADAPTER_CONFIG}",
            remedy=f"set {settings} in method, with the adapter's modules; or set model.adapter: merge",
        )


def adapted_paths(names: Iterable[str], parameters: Iterable[str] = ()) -> list[str]:
    """Return the paths of the modules and parameters that tensors of an adapter adapt, which peft matches with its
    `alpha_pattern` and `rank_pattern`. parameters: the adapter's `target_parameters`."""
    modules = {_adapted(name).removeprefix(ADAPTER_PREFIX).replace(".base_layer", "") for name in names}
    own = ((f"{path}.{target.rpartition('.')[2]}", target) for path in modules for target in parameters)
    return sorted(modules.union(path for path, target in own if is_target(path, target)))


def tensor_names(adapter: Path) -> list[str]:
    """Return the names of an adapter's tensors. InputError if its weights cannot be read."""
    path = adapter / ADAPTER_WEIGHTS
    try:
        return list(read_header(path)[1])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"the weights of the adapter cannot be read: {error}",
            where=str(path),
            remedy="save it as safetensors, or copy it again from its source",
        ) from error


def _adapted(name: str) -> str:
    return name.partition(".lora_")[0]
