"""Continued training of an exported adapter: its weights initialize the new run's adapter, which must match in form."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from safetensors import SafetensorError, safe_open

from tunesmith.errors import InputError
from tunesmith.model_files import ADAPTER_CONFIG, require_undamaged
from tunesmith.modeling.base_model.adapter_files import ADAPTER_WEIGHTS, SETTINGS
from tunesmith.modeling.base_model.multimodal import own_adapter_name
from tunesmith.modeling.loading.checks import require_finite

_KEY = "key method.start_from"


def copy_adapter(model: PeftModel, directory: Path) -> None:
    """Copy the weights of an exported adapter into the model's. Raises InputError if the two differ in form, or the
    weights cannot be read or are not finite; RunFault if it does not match the manifest of its export."""
    require_undamaged(directory)
    config = model.peft_config["default"]
    assert isinstance(config, LoraConfig)
    parameters = dict(model.named_parameters())
    try:
        stored = json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        with safe_open(str(directory / ADAPTER_WEIGHTS), framework="pt") as file:
            values = {_own_name(name, parameters): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"the adapter cannot be read: {error}", where=f"{_KEY}: {directory}") from error
    require_finite(values.items(), directory)
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    _require_same_form(config, stored, shapes, parameters, directory)
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)


def _require_same_form(
    config: LoraConfig,
    stored: dict[str, object],
    shapes: dict[str, tuple[int, ...]],
    parameters: dict[str, torch.nn.Parameter],
    directory: Path,
) -> None:
    other = [
        f"{key} {stored.get(key, default)}, here {getattr(config, key)}"
        for key, default in SETTINGS.items()
        if stored.get(key, default) != getattr(config, key)
    ]
    expected = {name: tuple(weight.shape) for name, weight in parameters.items() if weight.requires_grad}
    odd = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
    if odd and not other:
        other = [f"{odd[0]}: {shapes.get(odd[0], 'none')}, here {expected.get(odd[0], 'none')}"]
    if other:
        raise InputError(
            f"the adapter to continue from is of another form ({'; '.join(other)})",
            where=f"{_KEY}: {directory}",
            remedy="set the rank, scaling and modules of that adapter in the recipe, or merge it first: "
            "tunesmith export RUN --merge",
        )


def _own_name(name: str, parameters: dict[str, torch.nn.Parameter]) -> str:
    """Name in the model: peft omits the adapter's name on saving, `...lora_A.weight` is `...lora_A.default.weight`."""
    stem, _, last = name.rpartition(".")
    own = f"{stem}.default.{last}"
    known = own if own in parameters else f"{name}.default" if f"{name}.default" in parameters else name
    if known in parameters or (renamed := own_adapter_name(name)) == name:
        return known
    return _own_name(renamed, parameters)  # of an adapter on the multimodal class, whose text model this is
