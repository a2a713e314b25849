"""Streaming a model weight by weight from its files: never whole in fp32, and with ZeRO-3 never whole on any rank."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

import tunesmith.modeling.loading.packed_attention_hook  # noqa: F401  # registers PACKED, a possible `attention`
from tunesmith.errors import InputError
from tunesmith.freed_memory import return_freed_memory
from tunesmith.modeling.base_model.quantized_weights import quantized_weights, stored_parts
from tunesmith.modeling.loading.attention_choice import set_attention
from tunesmith.modeling.loading.checks import require_finite, require_same_shapes
from tunesmith.modeling.loading.dequantize import dequantized
from tunesmith.modeling.loading.document_rope import rotate_by_document
from tunesmith.modeling.loading.four_bit_experts import hold_in_four_bits, quantises, require_experts_in_four_bits
from tunesmith.modeling.loading.keyword_passing import pass_keywords
from tunesmith.modeling.loading.renamed_weights import RenamedWeights
from tunesmith.modeling.loading.text_model import causal_config, key_mapping

Place = Callable[[nn.Parameter], None]
"""Callback for each weight as soon as it is loaded: ZeRO-3 shards it over the ranks."""


def stream_model(
    directory: Path,
    *,
    dtype: torch.dtype,
    attention: str | None = None,
    device: str | torch.device = "cpu",
    nf4: bool = False,
    double_quantization: bool = True,
    place: Place | None = None,
    config: Any = None,
) -> PreTrainedModel:
    """Load the causal language model of a Hugging Face directory, like `load_model`, one weight at a time.

    Quantized weights are dequantized to `dtype`. nf4: linear layers except the head (`Nf4Linear`), and experts
    (`Nf4Stack`), in 4 bits; if the files are in 4 bits of bitsandbytes, exactly their 4-bit layers, bit for bit.
    config: of the model; None: that of the directory. place: called once with every parameter, in the model's order, on
    the device. Temporary memory is bounded by the largest weight. InputError if weights are missing.
    """
    weights = _Weights(directory, dtype)
    config = causal_config(directory) if config is None else config
    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    set_attention(model, attention)
    weights.of(model)
    if nf4:
        from tunesmith.modeling.quantization.nf4 import empty_nf4_linears

        empty_nf4_linears(
            model,
            keep=model.get_output_embeddings(),
            double_quantization=double_quantization,
            only=weights.layers_in_4_bits(),
        )
        model.is_loaded_in_4bit = True  # read by peft
    model.tie_weights()
    tied: dict[nn.Parameter, nn.Parameter] = {}
    for name, module in list(model.named_modules()):
        for key, empty in list(module.named_parameters(recurse=False)):
            full_name = f"{name}.{key}"
            if nf4 and empty not in tied and quantises(full_name, module, tuple(empty.shape)):
                if (stack := _checked(weights, full_name, empty.shape)) is not None:
                    options = {"dtype": dtype, "device": device, "double_quantization": double_quantization}
                    packed = hold_in_four_bits(module, key, stack, **options)
                    if place is not None:
                        place(packed)
                continue
            value = None if empty in tied else _loaded(weights, module, full_name, empty.shape, device)
            if value is not None:
                tied[empty] = value
                if place is not None:
                    place(value)
            module.register_parameter(key, tied.get(empty, empty))
        _fill_buffers(module, name, weights, model._keep_in_fp32_modules_strict or ())
    if missing := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise InputError(
            f"{len(missing)} weights are missing, the first is {missing[0]}",
            where=str(directory),
            remedy="download the model again: its files are incomplete, or of another architecture",
        )
    if nf4:
        require_experts_in_four_bits(model)
    if (directory / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory)
    rotate_by_document(model)
    pass_keywords(model)
    return_freed_memory()
    return model.to(device).eval()


def stored_in_fp32(directory: Path, model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights that the model's files store in fp32, by the model's parameter names, one at a time. FP8 and
    MXFP4 weights are dequantized to fp32."""
    weights = _Weights(directory, torch.float32)
    weights.prefix = getattr(model, "base_model_prefix", "")
    if isinstance(model, PreTrainedModel):  # otherwise with adapters, which are not in the files
        weights.of(model)
    for name, _ in model.named_parameters():
        value = weights.get(name)
        if value is not None and value.dtype == torch.float32:
            yield name, value


def _loaded(
    weights: "_Weights", module: nn.Module, name: str, shape: torch.Size, device: str | torch.device
) -> nn.Parameter | None:
    """Return a parameter of a module from the files, by its name in the model; None if they do not have it. shape: that
    it must have."""
    quantise = getattr(module, "quantised", None)  # of an Nf4Linear, whose module imports bitsandbytes
    is_nf4 = name.endswith(".weight") and callable(quantise)
    if is_nf4 and (stored := weights.four_bits(name)) is not None:
        from tunesmith.modeling.quantization.published import published_parameter

        return published_parameter(module, *stored, device, weights.dtype, weights.directory)  # type: ignore[arg-type]
    value = _checked(weights, name, shape)
    if value is None:
        return None
    value = value.to(weights.dtype)
    if is_nf4:
        assert callable(quantise)
        parameter = quantise(value, device)
        assert isinstance(parameter, nn.Parameter)
        return parameter
    return nn.Parameter(value.to(device), requires_grad=value.is_floating_point())


def _checked(weights: "_Weights", name: str, shape: torch.Size) -> torch.Tensor | None:
    """Return a weight from the files, of the shape that it must have and finite; None if they do not have it."""
    value = weights.get(name)
    if value is not None:
        if value.shape != shape:
            require_same_shapes([(name, value.shape, shape)], weights.directory)
        require_finite([(name, value)], weights.directory)
    return value


def _fill_buffers(module: nn.Module, name: str, weights: "_Weights", in_fp32: Iterable[str]) -> None:
    """Load what the files have of a module's buffers, such as corrections of the routing (DeepSeek V3). in_fp32: names
    that the model's class keeps in fp32."""
    for key, buffer in list(module.named_buffers(recurse=False)):
        if key not in module._non_persistent_buffers_set and (value := weights.get(f"{name}.{key}")) is not None:
            if value.shape != buffer.shape:
                require_same_shapes([(f"{name}.{key}", value.shape, buffer.shape)], weights.directory)
            module.register_buffer(key, value.to(torch.float32 if key in in_fp32 else buffer.dtype))


class _Weights:
    """The tensors of a directory's safetensors files, read one at a time.

    A file is mapped again for each tensor, so that the pages of earlier ones do not stay in memory.
    """

    def __init__(self, directory: Path, dtype: torch.dtype):
        """dtype: of dequantized weights; others are returned in the type of the files."""
        index = directory / "model.safetensors.index.json"
        names = ["model.safetensors"]
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        self.directory, self.dtype = directory, dtype
        self._quantized = quantized_weights(directory)
        self._path_of: dict[str, str] = {}
        self.prefix = ""
        """Of the model's backbone: names in the files may lack it."""
        self.renamed: RenamedWeights | None = None
        """Names that differ in the model; None: none do."""
        try:
            for path in (str(directory / name) for name in names):
                with safe_open(path, framework="pt") as file:
                    self._path_of |= dict.fromkeys(file.keys(), path)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"the weights cannot be read: {error}", where=str(directory), remedy="download the model again"
            ) from error
        self._parts = stored_parts(self._path_of, self._quantized)

    def of(self, model: PreTrainedModel) -> None:
        """Look up names of this model from now on."""
        self.prefix = model.base_model_prefix
        self.renamed = RenamedWeights(model, list(self._parts), key_mapping(self.directory))

    def get(self, name: str) -> torch.Tensor | None:
        """Return a weight by its name in the model, dequantized; None if there is none."""
        for key in (name, name.removeprefix(f"{self.prefix}.")):
            if self.renamed is not None and key in self.renamed.sources:
                return self.renamed.build(key, [self._read(part) for part, _ in self.renamed.sources[key].keys])
            if key in self._parts:
                return self._read(key)
        return None

    def four_bits(self, name: str) -> tuple[str, dict[str, torch.Tensor]] | None:
        """Return a weight by its name in the model as bitsandbytes stored it in 4 bits: its name in the files, and all
        its tensors. None if it is stored in another way."""
        key = self._key_in_4_bits(name)
        return None if key is None else (key, self._tensors(key))

    def layers_in_4_bits(self) -> Callable[[str], bool] | None:
        """Return whether the weight of a layer is stored in 4 bits, by its name; None if no layer's is."""
        if self._quantized is None or self._quantized.kind != "bitsandbytes":
            return None
        return lambda name: self._key_in_4_bits(f"{name}.weight") is not None

    def _key_in_4_bits(self, name: str) -> str | None:
        if self._quantized is None or self._quantized.kind != "bitsandbytes":
            return None
        for key in (name, name.removeprefix(f"{self.prefix}.")):
            if self.renamed is not None and (source := self.renamed.sources.get(key)) is not None:
                key = source.keys[0][0] if source.converter is None else ""
            if len(self._parts.get(key, ())) > 1:
                return key
        return None

    def _read(self, key: str) -> torch.Tensor:
        tensors = self._tensors(key)
        if self._quantized is None:
            return tensors[key]
        return dequantized(key, tensors, self._quantized, self.dtype, self.directory)

    def _tensors(self, key: str) -> dict[str, torch.Tensor]:
        """The tensors that a weight is stored in."""
        tensors = {}
        for part in self._parts[key]:
            with safe_open(self._path_of[part], framework="pt") as file:
                tensors[part] = file.get_tensor(part)
        return tensors
