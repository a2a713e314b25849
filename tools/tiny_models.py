"""Tiny models of the classes in transformers' causal mapping, each with the mechanism of its class.

A tiny configuration keeps at least two layers of each kind, groups of query heads per key-value head, windows shorter
than a row, and four or more experts of which two are active. Values are derived from the defaults of the configuration
class: sizes by the name of the field (`SIZES`), lists with one entry per layer by selecting layers. `OVERRIDES` lists
what follows from no name.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto

from tools.proving.tiny_values import BEFORE, MECHANISMS, OVERRIDES, SIZES

LAYERS = 2
"""Number of layers of a class whose layers are all of one kind."""
PER_KIND = 2
"""Minimum number of layers of each kind."""
NUM_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
VOCABULARY = 384
SCALE = 0.2
"""Standard deviation of the weights. With less, the losses of such small models hardly differ from uniform."""

_OTHER_MODALITIES = ("vision", "audio", "image", "speech")
_ENCODER_DECODERS = (
    modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)


EXCLUSIONS = {
    "encoder_decoder": "decoder half of an encoder-decoder model",
    "encoder": "encoder: transformers lists its type for masked language modeling",
    "other_modalities": "its configuration has a part for images or sound",
    "other_model_states": "it continues the hidden states of another model",
    "not_causal": "in its default configuration, a token sees later ones",
}
"""Why a class is not a text-only decoder."""


def causal_classes() -> dict[str, tuple[str, ...]]:
    """Return the model types of each class in transformers' causal mapping."""
    types: dict[str, tuple[str, ...]] = {}
    for model_type, names in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        for name in names if isinstance(names, (tuple, list)) else (names,):
            types[name] = (*types.get(name, ()), model_type)
    return types


def exclusion(name: str) -> str | None:
    """Return why a class is not a text-only decoder (a key of EXCLUSIONS), or None.

    The reason follows from transformers' own tables and from the fields of the class's configuration. `not_causal` is
    measured instead (`sees_later_tokens`).
    """
    model_class = getattr(transformers, name)
    config_class = model_class.config_class
    types = causal_classes()[name]
    if any(kind in table for kind in types for table in _ENCODER_DECODERS) or _is_decoder_half(model_class):
        return "encoder_decoder"
    if any(kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES for kind in types):
        return "encoder"
    parts = getattr(config_class, "sub_configs", None) or {}
    fields = {field.name for field in dataclasses.fields(config_class)}
    if any(word in part for part in parts for word in _OTHER_MODALITIES) or fields & {"num_codebooks", "image_size"}:
        return "other_modalities"
    return "other_model_states" if "backbone_hidden_size" in fields else None


@torch.no_grad()
def sees_later_tokens(model: Any) -> bool:
    """Whether the logits of a token depend on a later token of its document."""
    tokens_1T = torch.randint(5, VOCABULARY, (1, 40), generator=torch.Generator().manual_seed(1))
    changed_1T = tokens_1T.clone()
    changed_1T[0, -1] = (tokens_1T[0, -1] - 4) % (VOCABULARY - 5) + 5
    first, second = (model(input_ids=t, use_cache=False).logits[0, :-1] for t in (tokens_1T, changed_1T))
    return bool((first - second).abs().max() > 1e-4 * first.abs().max())  # rounding is 1e-6


def _is_decoder_half(model_class: Any) -> bool:
    """A decoder that is built to attend to an encoder of another model: its file has no model that runs alone."""
    fields = {field.name for field in dataclasses.fields(model_class.config_class)}
    return "cross_attention_hidden_size" in fields and "encoder_hidden_states" in _inputs(model_class)


def _inputs(model_class: Any) -> set[str]:
    return set(inspect.signature(model_class.forward).parameters)


def tiny_config(name: str) -> Any:
    """Return a tiny configuration of this class. Raises what the configuration class raises if there is none."""
    config_class = getattr(transformers, name).config_class
    return config_of(config_class, OVERRIDES.get(name, {}), BEFORE.get(name, {}))


def config_of(config_class: Any, own: Mapping[str, Any], before: Mapping[str, Any]) -> Any:
    """Return a tiny configuration of this configuration class.

    own: values that follow from no rule. before: values set before the defaults of other fields are read.
    """
    fields = [field.name for field in dataclasses.fields(config_class)]
    if "use_sliding_window" in fields:
        before = {"use_sliding_window": True, **before}
    defaults = config_class(**before)
    defaults.allow_global_per_layer_attribute_access = True
    values = dict(before) | {key: _size(defaults, key) for key in SIZES if _is_set(defaults, fields, key)}
    if "qk_rope_head_dim" in values and "head_dim" in values and defaults.head_dim == defaults.qk_rope_head_dim:
        values["head_dim"] = values["qk_rope_head_dim"]
    if "kv_lora_rank" in values and "num_key_value_heads" in values:  # the latent is expanded to one key per head
        values["num_key_value_heads"] = values["num_attention_heads"]
    number = next((key for key in NUM_LAYERS if key in fields), None)
    chosen = _chosen_layers(defaults, fields, getattr(defaults, number)) if number else []
    if number:
        first_dense = any(key in values for key in ("first_k_dense_replace", "num_dense_layers"))
        values[number] = len(chosen) or (2 * LAYERS if first_dense else LAYERS)
        for key in fields:
            entries: Any = getattr(defaults, key, None)
            if _is_per_layer(entries, getattr(defaults, number)) and chosen:
                values[key] = [entries[layer] for layer in chosen]
    for part, part_class in (getattr(config_class, "sub_configs", None) or {}).items():
        if part in fields and dataclasses.is_dataclass(part_class):
            values[part] = config_of(part_class, own.get(part, {}), {})
    values |= {key: value for key, value in own.items() if not isinstance(value, Mapping) or key not in values}
    return config_class(**values)


def _is_set(defaults: Any, fields: list[str], key: str) -> bool:
    """Whether the class has this size. None: not used, or computed from other sizes, except for MECHANISMS."""
    value = getattr(defaults, key, None) if key in fields else None
    if value is None:
        return key in fields and key in MECHANISMS
    return value is not False and not isinstance(value, (list, dict))


def _size(defaults: Any, key: str) -> Any:
    """The tiny size, as an integer where the class checks for one."""
    size = SIZES[key]
    return int(size) if type(getattr(defaults, key, None)) is int and size == int(size) else size


def _is_per_layer(entries: Any, num_layers: int) -> bool:
    """Whether these are kinds of layers. Lists of layer numbers have as many entries, but all differ."""
    if not isinstance(entries, (list, tuple)) or len(entries) != num_layers or num_layers <= PER_KIND:
        return False
    return len({str(entry) for entry in entries}) <= max(1, num_layers // 2)


def _chosen_layers(defaults: Any, fields: list[str], num_layers: int) -> list[int]:
    """Layers of the default configuration that together have each kind at least PER_KIND times, in their order."""
    entries_of: list[Any] = [getattr(defaults, key, None) for key in fields]
    lists = [entries for entries in entries_of if _is_per_layer(entries, num_layers)]
    chosen: list[int] = []
    for layer in range(num_layers) if lists else ():
        kinds = [(number, str(entries[layer])) for number, entries in enumerate(lists)]
        counts = [sum(str(lists[number][other]) == kind for other in chosen) for number, kind in kinds]
        if any(count < PER_KIND for count in counts) or len(chosen) < PER_KIND:
            chosen.append(layer)
    return chosen


def tiny_model(name: str, seed: int = 0) -> Any:
    """Return a tiny model of this class in evaluation mode, fp32, with random weights that depend on the seed only."""
    torch.manual_seed(seed)
    model = getattr(transformers, name)(tiny_config(name)).float()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *_router_biases(model)):
            # Constants (norms, biases, gates that start at zero) would hide a path that ignores them.
            if tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
                tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    return model.eval()


def _router_biases(model: torch.nn.Module) -> list[torch.Tensor]:
    return [buffer for name, buffer in model.named_buffers() if name.endswith("correction_bias")]
