"""Training that goes on from an exported adapter: its values become the first ones of the adapters of the same form."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from safetensors import SafetensorError, safe_open

from tunesmith.errors import InputError
from tunesmith.modeling.loading.load import ADAPTER_CONFIG, ADAPTER_WEIGHTS

SAME = ("r", "lora_alpha", "use_rslora", "use_dora")
"""Of the two configurations: with another scaling the same values would be another model."""
_KEY = "key method.start_from"


def copy_adapter(model: PeftModel, directory: Path) -> None:
    """Copy the values of an exported adapter into the model's. Raises InputError where the two are not of one form."""
    config = model.peft_config["default"]
    assert isinstance(config, LoraConfig)
    mine = dict(model.named_parameters())
    try:
        stored = json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        with safe_open(str(directory / ADAPTER_WEIGHTS), framework="pt") as file:
            values = {_own_name(name, mine): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"the adapter cannot be read: {error}", where=f"{_KEY}: {directory}") from error
    _require_same_form(config, stored, {name: tuple(value.shape) for name, value in values.items()}, mine, directory)
    with torch.no_grad():
        for name, value in values.items():
            mine[name].copy_(value)


def _require_same_form(
    config: LoraConfig,
    stored: dict[str, object],
    shapes: dict[str, tuple[int, ...]],
    mine: dict[str, torch.nn.Parameter],
    directory: Path,
) -> None:
    other = [
        f"{key} {stored.get(key)}, here {getattr(config, key)}"
        for key in SAME
        if stored.get(key) != getattr(config, key)
    ]
    expected = {name: tuple(weight.shape) for name, weight in mine.items() if weight.requires_grad}
    odd = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
    if odd and not other:
        other = [f"{odd[0]}: {shapes.get(odd[0], 'none')}, here {expected.get(odd[0], 'none')}"]
    if other:
        raise InputError(
            f"the adapter that is to be trained further is of another form ({'; '.join(other)})",
            where=f"{_KEY}: {directory}",
            remedy="give the method the rank, scaling and modules of that adapter, or merge it first: "
            "tunesmith export RUN --merge",
        )


def _own_name(name: str, mine: dict[str, torch.nn.Parameter]) -> str:
    """peft leaves the adapter's name out where it saves: `...lora_A.weight` is `...lora_A.default.weight` here."""
    stem, _, last = name.rpartition(".")
    own = f"{stem}.default.{last}"
    return own if own in mine else f"{name}.default" if f"{name}.default" in mine else name
