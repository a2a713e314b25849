"""Export of a multimodal checkpoint: the trained text model under its published names, everything else byte for byte.

The files are those of the base model: same names, same tensors in the same order.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from tunesmith.errors import RunFault
from tunesmith.modeling.base_model.multimodal import TextModel
from tunesmith.modeling.base_model.tensor_files import (
    Location,
    read_header,
    same_bytes,
    tensor_locations,
    weight_file_paths,
)
from tunesmith.modeling.base_model.weight_files import INDEX, read_object
from tunesmith.progress import advance
from tunesmith.rundir.atomic import write_json

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""safetensors' names."""
_PRECISE = ("float32", "float64")


def write_whole_checkpoint(shell: PreTrainedModel, text: TextModel, base: Path, target: Path) -> None:
    """Write config.json and weights of the published class to the directory `target`.

    shell: the text model with the weights to write, tied ones tied. base: the multimodal checkpoint. RunFault if a
    weight has no place in the checkpoint.
    """
    weights = _published(shell, text)
    tied, head = bool(shell.config.tie_word_embeddings), f"{text.names.head}weight"
    paths = weight_file_paths(base)
    stored = {path: read_header(path) for path in paths}
    known = {name for _, tensors in stored.values() for name in tensors}
    added = [name for name in weights if name not in known and not (tied and name == head)]
    if odd := [name for name in added if name != head]:
        raise RunFault(
            f"{len(odd)} trained weights have no place in the multimodal checkpoint, such as {odd[0]}",
            where=str(base),
            remedy="please report it with the model's name; the checkpoints of the run are intact",
        )
    total, located = 0, {}
    for path, (metadata, tensors) in stored.items():
        names = [*tensors, *(added if path == paths[-1] else [])]
        content = {name: weights.get(name, tensors.get(name)) for name in names}
        total += _write_file(target / path.name, metadata, content)
        located |= dict.fromkeys(names, path.name)
    if (base / INDEX).is_file():
        index = read_object(base / INDEX)
        index["metadata"] = {**index.get("metadata", {}), "total_size": total}
        write_json(target / INDEX, {**index, "weight_map": located})
    write_json(target / "config.json", _config(shell, base))


def carried_fault(text: TextModel, base: Path, export: Path) -> str | None:
    """Return the first tensor outside the text model that an export has lost, added or changed; None if there is
    none."""
    carried, exported = (
        {name: at for name, at in tensor_locations(directory).items() if text.names.own_name(name) is None}
        for directory in (base, export)
    )
    if different := sorted(carried.keys() ^ exported.keys()):
        return f"a tensor to carry through is in only one of base model and export: {different[0]}"
    for name, location in carried.items():
        advance()
        if not same_bytes(location, exported[name]):
            return f"its {name} is not the base model's, bit by bit: it is to be carried through unchanged"
    return None


def _published(shell: PreTrainedModel, text: TextModel) -> dict[str, torch.Tensor]:
    """The text model's tensors by their names in the checkpoint."""
    tensors = revert_weight_conversion(shell, shell.state_dict())
    return {text.names.published_name(name): tensor for name, tensor in tensors.items()}


def _write_file(path: Path, metadata: dict[str, str], tensors: dict[str, Any]) -> int:
    """Write a safetensors file of torch tensors and of locations of others, in this order. Returns the bytes of the
    tensors. Format: see weight_files.py."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        dtype, shape, num_bytes = _form(tensor)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + num_bytes]}
        end += num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8 bytes
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            _write_tensor(tensor, file.write)
            advance()
    return end


def _form(tensor: torch.Tensor | Location) -> tuple[str, list[int], int]:
    if isinstance(tensor, Location):
        return tensor.dtype, list(tensor.shape), tensor.num_bytes
    return DTYPES[tensor.dtype], list(tensor.shape), tensor.numel() * tensor.element_size()


def _write_tensor(tensor: torch.Tensor | Location, write: Callable[[bytes], object]) -> None:
    if isinstance(tensor, Location):
        for chunk in tensor.chunks():
            write(chunk)
        return
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    for part in flat.split(1 << 20) if flat.numel() else ():
        write(part.view(torch.uint8).numpy().tobytes())


def _config(shell: PreTrainedModel, base: Path) -> dict[str, Any]:
    """The base model's config.json, with what the text model changes: tied weights, and the dtype that no tensor is
    rounded to on loading."""
    config = read_object(base / "config.json")
    tied = bool(shell.config.tie_word_embeddings)
    for part in (config, config["text_config"]):
        if "tie_word_embeddings" in part or part is config:
            part["tie_word_embeddings"] = tied
    config["text_config"]["vocab_size"] = shell.config.vocab_size  # published ones may omit the default of the class
    if "vocab_size" in config:
        config["vocab_size"] = shell.config.vocab_size
    written = str(shell.dtype).removeprefix("torch.")
    for part in (config, config["text_config"]):
        key = "torch_dtype" if "torch_dtype" in part else "dtype"
        if part is config or key in part:
            part[key] = part[key] if part.get(key) in _PRECISE else written
    return config
