"""The cut model of the proof: the first layers up to one of each kind, in fp32, with the real embeddings and head.

The layers are a prefix, so that everything that depends on a layer's index (kinds, caches, tensor names) stays right.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tunesmith.errors import RunFault
from tunesmith.modeling.base_model.quantized_weights import quantized_weights
from tunesmith.modeling.loading.checks import require_finite, require_same_shapes, require_whole
from tunesmith.modeling.loading.document_rope import rotate_by_document
from tunesmith.modeling.loading.load import from_directory
from tunesmith.modeling.loading.stream import stream_model
from tunesmith.modeling.loading.text_model import causal_config, key_mapping
from tunesmith.modeling.proof.compare import Findings, prove
from tunesmith.modeling.proof.examples import LONGEST_WINDOW, WINDOWS

LARGEST_BYTES = 6 << 30
"""Limit of the cut model's weights. Its gradients are held twice, without those of LARGE weights."""
LARGE = 1 << 26
"""Values of a weight above which its gradient is not compared: embeddings and heads of large models. Errors there reach
every other gradient."""
SHORT_WINDOW = 16
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def prove_directory(directory: Path) -> tuple[Findings, list[str]]:
    """Prove the cut model of a Hugging Face directory on the CPU. Returns the findings, and what was cut.

    InputError if it cannot be loaded, RunFault if even its smallest cut is too large.
    """
    model, cut = cut_model(directory)
    large = [name for name, weight in model.named_parameters() if weight.numel() > LARGE]
    for name, weight in model.named_parameters():
        weight.requires_grad_(name not in large)
    return prove(model), cut + ([f"gradient of {', '.join(large)}"] if large else [])


def cut_model(directory: Path) -> tuple[PreTrainedModel, list[str]]:
    """Load the cut model, in evaluation mode. Errors as of `prove_directory`."""
    config: Any = causal_config(directory)
    cut: list[str] = []
    text = config.get_text_config(decoder=True)
    for name in WINDOWS:
        window = getattr(text, name, None)
        if isinstance(window, int) and window > LONGEST_WINDOW:
            setattr(text, name, SHORT_WINDOW)
            cut.append(f"{name} {window} -> {SHORT_WINDOW}")
    whole = empty_model(config)
    layers = layers_of(whole)
    needed = num_needed(layers)
    while (size := _num_bytes(whole, layers, needed)) > LARGEST_BYTES:
        if needed == 1:
            raise RunFault(f"one layer and the embeddings take {size >> 30} GiB in fp32", where=str(directory))
        needed = max(1, needed // 2)
    try:
        model = _loaded(directory, shortened(config, len(layers), needed))
    except Exception:
        # Some classes load only with all their layers, and fail in their own way without: shapes depend on the number
        # of layers (Gemma 3n and 4: embeddings per layer), or layers share weights (Zamba).
        if needed == len(layers) or _num_bytes(whole, layers, len(layers)) > LARGEST_BYTES:
            raise
        return _loaded(directory, config), cut
    if needed < len(layers):
        cut.insert(0, f"{len(layers)} layers -> the first {needed}")
    return model, cut


def _num_bytes(model: nn.Module, layers: list[nn.Module], needed: int) -> int:
    """Size in fp32 of the model with the first `needed` layers."""
    kept = {id(weight) for layer in layers[:needed] for weight in layer.parameters()}
    cut = {id(weight) for layer in layers[needed:] for weight in layer.parameters()} - kept
    return 4 * sum(weight.numel() for weight in model.parameters() if id(weight) not in cut)


def _loaded(directory: Path, config: PretrainedConfig) -> PreTrainedModel:
    if quantized_weights(directory) is not None:
        return stream_model(directory, dtype=torch.float32, config=copy.deepcopy(config))
    options = {"dtype": torch.float32, "config": config, "ignore_mismatched_sizes": True}
    if mapping := key_mapping(directory):
        options["key_mapping"] = mapping
    model, info = from_directory(AutoModelForCausalLM, directory, " of a causal language model", **options)
    require_same_shapes(info["mismatched_keys"], directory)
    require_whole(info["missing_keys"], directory)
    require_finite(model.named_parameters(), directory)
    rotate_by_document(model)
    return model.eval()


def empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """Return the model of a configuration without memory for its weights."""
    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model: the list of modules with the most weights."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    return list(max(lists, key=lambda module: sum(p.numel() for p in module.parameters()), default=[]))


def num_needed(layers: list[nn.Module]) -> int:
    """Return the number of first layers that contain one of each kind, and at least two where there are."""
    kinds = [kind_of(layer) for layer in layers]
    return max([min(2, len(layers)), *(kinds.index(kind) + 1 for kind in set(kinds))])


def kind_of(layer: nn.Module) -> tuple[Any, ...]:
    """Return what distinguishes kinds of layers: classes, shapes and settings of their modules, without indices."""
    return tuple(
        (
            name,
            type(module).__name__,
            tuple((key, tuple(weight.shape)) for key, weight in module.named_parameters(recurse=False)),
            tuple(
                (key, value)
                for key, value in sorted(vars(module).items())
                if isinstance(value, bool | int | str)
                and not key.startswith("_")
                and "id" not in key.split("_")
                and not key.endswith(("idx", "index", "layer_id", "training"))
            ),
        )
        for name, module in layer.named_modules()
    )


def shortened(config: PretrainedConfig, num_layers: int, needed: int) -> PretrainedConfig:
    """Return the configuration of the first layers: the number of layers, and every list with an entry by layer."""
    smaller = copy.deepcopy(config)
    if needed == num_layers:
        return smaller
    text: Any = smaller.get_text_config(decoder=True)
    for key, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == num_layers:
            setattr(text, key, value[:needed])
    for key in LAYER_COUNTS:
        if getattr(text, key, None) == num_layers:
            setattr(text, text.attribute_map.get(key, key), needed)
    return smaller
