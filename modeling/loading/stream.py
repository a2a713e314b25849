"""Streaming a model weight by weight from its files: never whole in fp32, and with ZeRO-3 never whole on any rank."""

import ctypes
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from tunesmith.errors import InputError
from tunesmith.modeling.loading.document_rope import rotate_by_document
from tunesmith.modeling.loading.load import require_finite, require_same_shapes

Place = Callable[[nn.Parameter], None]
"""Callback for each weight as soon as it is loaded: ZeRO-3 shards it over the ranks."""


def stream_model(
    directory: Path,
    *,
    dtype: torch.dtype,
    attention: str,
    device: str | torch.device = "cpu",
    nf4: bool = False,
    double_quantization: bool = True,
    place: Place | None = None,
) -> PreTrainedModel:
    """Load the causal language model of a Hugging Face directory, like `load_model`, one weight at a time.

    nf4: linear layers except the head in 4 bits (`Nf4Linear`). place: called once with every parameter, in the model's
    order, on the device. Temporary memory is bounded by the largest weight.
    InputError if weights are missing.
    """
    weights = _Weights(directory)
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )
    if nf4:
        from tunesmith.modeling.quantization.nf4 import empty_nf4_linears

        empty_nf4_linears(model, keep=model.get_output_embeddings(), double_quantization=double_quantization)
        model.is_loaded_in_4bit = True  # read by peft
    model.tie_weights()
    tied: dict[nn.Parameter, nn.Parameter] = {}
    for name, module in model.named_modules():
        for key, empty in list(module.named_parameters(recurse=False)):
            if empty not in tied and (value := weights.get(f"{name}.{key}", model.base_model_prefix)) is not None:
                if value.shape != empty.shape:
                    require_same_shapes([(f"{name}.{key}", value.shape, empty.shape)], directory)
                require_finite([(f"{name}.{key}", value)], directory)
                tied[empty] = _filled(module, key, value.to(dtype), device)
                if place is not None:
                    place(tied[empty])
            module.register_parameter(key, tied.get(empty, empty))
    if missing := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise InputError(
            f"{len(missing)} weights are missing, the first is {missing[0]}",
            where=str(directory),
            remedy="download the model again: its files are incomplete, or of another architecture",
        )
    if (directory / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory)
    rotate_by_document(model)
    _give_back()
    return model.to(device).eval()


def stored_in_fp32(directory: Path, model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights that the model's files store in fp32, by the model's parameter names, one at a time."""
    weights = _Weights(directory)
    prefix = getattr(model, "base_model_prefix", "")
    for name, _ in model.named_parameters():
        value = weights.get(name, prefix)
        if value is not None and value.dtype == torch.float32:
            yield name, value


def _give_back() -> None:
    """Return freed memory from the C library to the system: quantizing SmolLM2-135M leaves 260 MB."""
    with suppress(OSError, AttributeError):  # another C library than glibc has no such function
        ctypes.CDLL(None).malloc_trim(0)


def _filled(module: nn.Module, key: str, value: torch.Tensor, device: str | torch.device) -> nn.Parameter:
    quantise = getattr(module, "quantised", None)  # of an Nf4Linear, whose module imports bitsandbytes
    if key == "weight" and callable(quantise):
        parameter = quantise(value, device)
        assert isinstance(parameter, nn.Parameter)
        return parameter
    return nn.Parameter(value.to(device), requires_grad=value.is_floating_point())


class _Weights:
    """The tensors of a directory's safetensors files, read one at a time.

    A file is mapped again for each tensor, so that the pages of earlier ones do not stay in memory.
    """

    def __init__(self, directory: Path):
        index = directory / "model.safetensors.index.json"
        names = ["model.safetensors"]
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        self._path_of: dict[str, str] = {}
        try:
            for path in (str(directory / name) for name in names):
                with safe_open(path, framework="pt") as file:
                    self._path_of |= dict.fromkeys(file.keys(), path)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"the weights cannot be read: {error}", where=str(directory), remedy="download the model again"
            ) from error

    def get(self, name: str, prefix: str) -> torch.Tensor | None:
        """Return a weight by its name in the model; names in the files may lack the prefix of the backbone."""
        for key in (name, name.removeprefix(f"{prefix}.")):
            if key in self._path_of:
                with safe_open(self._path_of[key], framework="pt") as file:
                    return file.get_tensor(key)
        return None
