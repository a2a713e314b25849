"""Loading of causal models, of multimodal checkpoints the text model alone."""

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import tunesmith.modeling.quantization.bitsandbytes_light  # noqa: F401  # isort: skip  # before peft imports it
from peft import LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key
from transformers.utils import logging as transformers_logging

from tunesmith.modeling.base_model.adapter_files import adapted_paths, tensor_names
from tunesmith.modeling.base_model.multimodal import ADAPTER_MAPPING, TextModel, own_path, text_model_in
from tunesmith.modeling.loading.dequantize import plain_config


def causal_config(directory: Path) -> Any:
    """Return the transformers configuration of the causal model in a directory, without the quantization of its files;
    of a multimodal checkpoint, that of its text model. Errors as of `text_model_in`."""
    text = text_model_in(directory)
    return plain_config(directory) if text is None else _own_config(directory, text)


def _own_config(directory: Path, text: TextModel) -> Any:
    config = plain_config(directory)
    own = copy.deepcopy(config.get_text_config(decoder=True))
    own.tie_word_embeddings = text.config["tie_word_embeddings"]
    own.architectures = text.config["architectures"]
    return own


def key_mapping(directory: Path) -> dict[str, str]:
    """Return transformers' `key_mapping` from the names in the files to those of the causal model; empty if they need
    none."""
    text = text_model_in(directory)
    return {} if text is None else text.names.key_mapping()


def causal_options(directory: Path) -> dict[str, Any]:
    """Return the options with which AutoModelForCausalLM.from_pretrained loads the text model of a multimodal
    checkpoint; empty for any other directory."""
    text = text_model_in(directory)
    if text is None:
        return {}
    return {"config": _own_config(directory, text), "key_mapping": text.names.key_mapping()}


class AdapterOptions(NamedTuple):
    """How peft loads an adapter. key_mapping: patterns and replacements of the names of its tensors."""

    config: PeftConfig
    key_mapping: dict[str, str] | None


def adapter_options(base: Path, adapter: Path) -> AdapterOptions:
    """Return the options with which peft loads an adapter in eval mode: one on a multimodal class, onto its text model
    alone. Errors as of peft for an adapter_config.json that it cannot read."""
    config = PeftConfig.from_pretrained(str(adapter))
    config.inference_mode = True
    config.base_model_name_or_path = None  # otherwise peft warns if it is not the name of the loaded model
    if text_model_in(base) is None:
        return AdapterOptions(config, None)
    if not isinstance(config, LoraConfig) or isinstance(config.target_modules, str):
        return AdapterOptions(config, None)
    config.target_modules = list(map(own_path, config.target_modules or ()))
    for key, value in own_settings(vars(config), tensor_names(adapter)).items():
        setattr(config, key, value)
    return AdapterOptions(config, ADAPTER_MAPPING)


def own_settings(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the settings of an adapter on a multimodal class that name parameters or match paths (`alpha_pattern`,
    `rank_pattern`) as they are for its text model alone. config: content of adapter_config.json. names: of the
    adapter's tensors."""
    parameters = config.get("target_parameters") or ()
    paths = adapted_paths(names, parameters)
    return {
        "target_parameters": list(map(own_path, parameters)) or None,
        **{key: _own_pattern(config.get(key) or {}, paths) for key in ("alpha_pattern", "rank_pattern")},
    }


def _own_pattern(values: Mapping[str, float], paths: Iterable[str]) -> dict[str, float]:
    """Values by regular expression, for the paths of the text model's class. paths: of the multimodal class."""
    matched: dict[str, list[str]] = {}
    for path in paths:
        key = get_pattern_key(list(values), path)
        matched.setdefault(key, []).append(re.escape(own_path(path)))
    return {"|".join(own): values[key] for key, own in matched.items() if key in values}


@contextmanager
def without_report() -> Iterator[None]:
    """Disable transformers' warning about tensors that a model does not use: those outside the text model."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
