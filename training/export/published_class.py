"""The published class of a multimodal checkpoint: the names of the text model in it, for adapters and for the gate."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tunesmith.modeling.quantization.bitsandbytes_light  # noqa: F401  # isort: skip  # before peft imports it
import torch
import transformers
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper

from tunesmith.errors import RunFault
from tunesmith.modeling.base_model.multimodal import ADAPTER_PREFIX, TextNames, text_names
from tunesmith.modeling.base_model.weight_files import read_object

Weights = Mapping[str, Callable[[], torch.Tensor]]


def published_class(directory: Path) -> Any:
    """Return the transformers class that a directory's config.json names. RunFault if it is not installed."""
    path = directory / "config.json"
    name = read_object(path)["architectures"][0]
    kind = getattr(transformers, name, None)
    if kind is None:
        raise RunFault(f"the installed transformers has no class {name}", where=str(path))
    return kind


def text_weights(weights: Weights) -> dict[str, Callable[[], torch.Tensor]]:
    """Return the weights of the text model among those of the published class, by their names in its own class."""
    names = text_names(weights)
    if names is None:
        return {}
    own = {names.own_name(name): weight for name, weight in weights.items()}
    return {name: weight for name, weight in own.items() if name is not None}


def published_names(directory: Path) -> TextNames:
    """Return the names of the text model in the class that the checkpoint in a directory is loaded as. RunFault if the
    class is not installed, or has another form."""
    config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    kind = published_class(directory)
    with torch.device("meta"):
        names = text_names(kind(config).state_dict())
    if names is None:
        raise RunFault(
            f"the text model of {kind.__name__} has another form: its adapter cannot be exported",
            where=str(directory),
            remedy="set export.form to merged",
        )
    return names


def published_adapter_name(name: str, names: TextNames) -> str:
    """Return the name of an adapter's tensor in an adapter on the published class."""
    return ADAPTER_PREFIX + names.published_name(name.removeprefix(ADAPTER_PREFIX))


def set_published_targets(config: LoraConfig, model: torch.nn.Module, names: TextNames) -> None:
    """Name what has an adapter by its path in the published class, whose other parts have modules of the same names.

    config: to change. model: the text model with adapters.
    """
    modules, parameters = [], []
    for path, module in model.named_modules():
        published = names.published_name(path.removeprefix(ADAPTER_PREFIX))
        if isinstance(module, ParamWrapper):  # those of one module are inside each other
            parameters.append(f"{published.removesuffix('.base_layer')}.{module.parameter_name}")
        elif isinstance(module, LoraLayer):
            modules.append(published)
    config.target_modules, config.exclude_modules = sorted(modules), None
    config.target_parameters = parameters or None
