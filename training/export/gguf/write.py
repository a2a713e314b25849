"""Writing a Hugging Face directory as a GGUF file, one tensor at a time."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors import safe_open
from transformers import AutoConfig

from tunesmith.progress import advance
from tunesmith.training.export.gguf.architectures import (
    Architecture,
    architecture_of,
    changed,
    context_length,
    extra_tensors,
    tensor_names,
    write_hyperparameters,
)
from tunesmith.training.export.gguf.quantization import Quantization, Quantizer, num_bytes, quantized, tensor_type
from tunesmith.training.export.gguf.vocabulary import Vocabulary, read_vocabulary

logging.getLogger("gguf").setLevel(logging.ERROR)


class Tensor(NamedTuple):
    """name: in the file. shape: as in torch. kind: its type. read: returns it, fp32."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    read: Callable[[], np.ndarray]


class Contents(NamedTuple):
    """What a file will contain."""

    config: Any
    architecture: Architecture
    vocabulary: Vocabulary
    tensors: list[Tensor]

    @property
    def context_length(self) -> int:
        """Tokens that the file states as its limit."""
        return context_length(self.config, self.architecture)

    @property
    def num_bytes(self) -> int:
        """Size of the tensors in the file."""
        return sum(num_bytes(tensor.shape, tensor.kind) for tensor in self.tensors)


def config_of(directory: Path) -> Any:
    """Return the configuration of a Hugging Face directory."""
    return AutoConfig.from_pretrained(directory, local_files_only=True)


def read_contents(directory: Path, quantization: Quantization, weights: ExitStack) -> Contents:
    """Return what the file of a Hugging Face directory will contain. weights: keeps its safetensors files open.

    Raises InputError if the class, the rotary scaling, a tensor or the tokenizer has no equivalent in llama.cpp.
    """
    config = config_of(directory)
    known = architecture_of(config.architectures[0], config)
    vocabulary = read_vocabulary(directory, config.vocab_size)
    name_of = tensor_names(known, config.num_hidden_layers)
    matrices = dict(_weights(directory, weights))
    tied = "lm_head.weight" not in matrices
    eighty = config.num_hidden_layers == 80 and config.num_attention_heads != config.num_key_value_heads
    tensors = []
    for name, (shape, read) in matrices.items():
        new = name_of(name)
        kind = tensor_type(
            new, shape, quantization, num_blocks=config.num_hidden_layers, tied=tied, eighty_grouped=eighty
        )
        tensors.append(Tensor(new, shape, kind, lambda n=name, r=read: changed(n, r(), config, known)))
    for name, value in extra_tensors(config, known).items():
        tensors.append(Tensor(name, value.shape, GGMLQuantizationType.F32, lambda v=value: v))
    return Contents(config, known, vocabulary, tensors)


def write_file(
    path: Path, contents: Contents, quantization: Quantization, name: str, quantizer: Quantizer | None
) -> None:
    """Write the file. name: of the model, for display. quantizer: llama.cpp's, for the K-quants.

    Peak memory: about 8 bytes per value of the largest tensor.
    """
    writer = GGUFWriter(None, arch=gguf.MODEL_ARCH_NAMES[contents.architecture.arch])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(_display_name(name, contents))
    write_hyperparameters(writer, contents.config, contents.architecture)
    writer.add_file_type(quantization.file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    contents.vocabulary.write(writer)
    for tensor in contents.tensors:
        size = num_bytes(tensor.shape, tensor.kind)
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=tensor.kind)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in contents.tensors:
            writer.write_tensor_data(quantized(tensor.read(), tensor.kind, quantizer))
            advance()
    finally:
        writer.close()


def _display_name(name: str, contents: Contents) -> str:
    """The model's name. llama.cpp strips whitespace after special tokens if the name has phi-3 in it, as the tokenizer
    of that model does, and fails if another tokenizer is so named."""
    is_phi3 = contents.architecture.arch == gguf.MODEL_ARCH.PHI3 and contents.vocabulary.model == "llama"
    if is_phi3:
        return f"{name} (Phi-3)"
    return re.sub(r"(?i)phi-?3", "phi 3", name)


def _weights(
    directory: Path, opened: ExitStack
) -> Iterator[tuple[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]]]:
    """(name, (shape, function that returns it as fp32)) of every weight, sorted by block as llama.cpp's tools do."""
    for path in sorted(directory.glob("model*.safetensors")):
        file: Any = opened.enter_context(safe_open(str(path), framework="pt"))
        for name in file.keys():  # noqa: SIM118
            shape = tuple(file.get_slice(name).get_shape())
            yield name, (shape, lambda f=file, n=name: f.get_tensor(n).to(torch.float32).numpy())
